"""A checkpoint gives back what was written, and nothing that was damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from launcher.checkpoint.boxes import Box
from launcher.checkpoint.manifest import Malformed, manifest_text, parse_manifest, read_manifest
from launcher.checkpoint.publish import prune, read_latest, set_aside
from launcher.checkpoint.reader import Checkpoint, list_checkpoints, newest_verified, verify
from tests.checkpoint.folders import SHAPES, box_of, save, values


def test_every_box_of_every_tensor_comes_back(tmp_path):
    checkpoint = Checkpoint(save(tmp_path, 3))
    for name, array in values(3).items():
        assert (checkpoint.read(name, box_of(array.shape)) == array).all()
        inner = Box(offsets=(1,) * array.ndim, sizes=tuple(n - 2 for n in array.shape))
        assert (checkpoint.read(name, inner) == array[inner.slices()]).all()


def test_a_source_has_the_logical_names_of_one_kind(tmp_path):
    source = Checkpoint(save(tmp_path, 3)).source("exp_avg")
    assert sorted(source.names()) == ["a", "b"]
    assert source.shape("a") == (7, 5)
    assert (source.read("b", (2,), (4,)) == values(3)["exp_avg/b"][2:6]).all()
    with pytest.raises(KeyError):
        source.shape("c")


def test_the_files_are_what_the_safetensors_library_reads(tmp_path):
    folder = save(tmp_path, 3, num_files=1)
    found = load_file(folder / "rank_00000.safetensors")
    for name, array in values(3).items():
        origin = ",".join("0" * array.ndim)
        assert (found[f"{name}@{origin}"] == array).all()


def test_a_manifest_survives_its_text():
    for step in (0, 12):
        made = parse_manifest(manifest_text(_manifest(step)))
        assert made == _manifest(step)


def _manifest(step):
    from launcher.checkpoint.manifest import FileRecord, Manifest

    return Manifest(
        step=step, consumed_samples=1, consumed_tokens=2, number=3, saved_at=4.5, seed=5,
        files={"f": FileRecord(size=1, checksum="x")}, tensors={},
    )  # fmt: skip


@pytest.mark.parametrize("position", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_flipped_bit_anywhere_in_a_manifest_is_found(tmp_path, position):
    folder = save(tmp_path, 3)
    path = folder / "manifest.json"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)
    assert verify(folder).startswith("manifest.json: ")


def test_every_kind_of_damage_is_named(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
    victim = "rank_00001.safetensors"
    flipped = bytearray((tmp_path / "step_00000006" / victim).read_bytes())
    flipped[-3] ^= 4
    (tmp_path / "step_00000006" / victim).write_bytes(flipped)
    torn = (tmp_path / "step_00000005" / victim).read_bytes()
    (tmp_path / "step_00000005" / victim).write_bytes(torn[:-8])
    (tmp_path / "step_00000004" / victim).unlink()
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    (tmp_path / "step_00000002" / "manifest.json").write_text("{}")
    choice = newest_verified(tmp_path)
    assert choice.checkpoint is not None
    assert choice.checkpoint.name == "step_00000001"
    reasons = {refusal.name: refusal.reason for refusal in choice.refused}
    assert list(reasons) == [f"step_0000000{step}" for step in (6, 5, 4, 3, 2)]
    assert reasons["step_00000006"] == f"{victim}: its checksum does not match its content"
    assert reasons["step_00000005"].startswith(f"{victim} has ")
    assert "No such file" in reasons["step_00000004"]
    assert "cannot be read" in reasons["step_00000003"]
    assert "no manifest" in reasons["step_00000002"]


def test_without_any_there_is_nothing_to_choose(tmp_path):
    assert newest_verified(tmp_path / "nowhere").checkpoint is None


def test_pieces_with_a_hole_or_an_overlap_are_no_checkpoint(tmp_path):
    for change in ("hole", "overlap"):
        folder = save(tmp_path / change, 1)
        document = json.loads(manifest_text(read_manifest(folder)))
        pieces = document["tensors"]["weight/b"]["pieces"]
        if change == "hole":
            pieces.pop()
        else:
            pieces[1] = pieces[0]
        made = _checksummed(document)
        (folder / "manifest.json").write_text(made)
        assert "weight/b do not make up the whole tensor" in verify(folder)


def _checksummed(document):
    from launcher.checkpoint.manifest import _canonical, _checksum

    document.pop("checksum")
    return _canonical({**document, "checksum": _checksum(document)})


def test_an_unknown_version_is_refused_by_name(tmp_path):
    document = json.loads(manifest_text(_manifest(1))) | {"version": 2}
    with pytest.raises(Malformed, match="version 2, not 1"):
        parse_manifest(_checksummed(document))


def test_latest_names_the_newest_and_never_what_is_gone(tmp_path):
    assert read_latest(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
        assert read_latest(tmp_path) == f"step_0000000{step}"
    set_aside(tmp_path, "step_00000003", "flipped")
    assert read_latest(tmp_path) is None
    assert (tmp_path / "refused_step_00000003.1" / "refused.txt").read_text() == "flipped\n"
    assert list_checkpoints(tmp_path) == ["step_00000002", "step_00000001"]


def test_the_newest_and_the_permanent_ones_are_kept(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, permanent=step % 3 == 0)
    assert prune(tmp_path, None) == []
    prune(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [f"step_0000000{step}" for step in (7, 6, 3)]
    assert not list(tmp_path.glob(".*.old"))


def test_a_checkpoint_takes_the_place_of_one_that_did_not_verify(tmp_path):
    folder = save(tmp_path, 4)
    (folder / "manifest.json").unlink()
    save(tmp_path, 4, nonce="m")
    assert verify(folder) is None


def test_reading_holds_views_of_the_files_and_no_copies(tmp_path):
    checkpoint = Checkpoint(save(tmp_path, 2, num_files=1))
    part = checkpoint.read("weight/a", Box(offsets=(2, 1), sizes=(3, 2)))
    assert isinstance(part.base, np.memmap) or part.base is not None
    assert not part.flags.owndata
    assert not part.flags.writeable
    assert set(SHAPES) == set(checkpoint.manifest.tensors)
