"""The batch triangle from any two sides, and what a contradiction says."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.config.rules import check_run
from launcher.config.schema import Train
from launcher.plan.batch import MAX_DEFAULT_TOKENS, solve_batch
from tests.factory import CPU, make_run

sides = st.integers(1, 64)


def solve(dp=1, pp=1, sequence_length=128, **given_sides):
    batch = solve_batch(Train(steps=1, **given_sides), dp, pp, sequence_length)
    return batch.micro_batch_size, batch.num_microbatches, batch.global_batch_size


@given(sides, sides, sides, st.sampled_from(["micro", "count", "whole", "none"]))
def test_any_two_sides_give_the_third(micro, count, dp, left_out):
    whole = micro * count * dp
    given_sides = {"micro_batch_size": micro, "num_microbatches": count}
    given_sides["global_batch_size"] = whole
    key = {"micro": "micro_batch_size", "count": "num_microbatches", "whole": "global_batch_size"}
    given_sides.pop(key.get(left_out, ""), None)
    assert solve(dp, **given_sides) == (micro, count, whole)


def test_open_sides_keep_a_pipeline_busy():
    assert solve(dp=2, pp=4) == (1, 32, 64)
    assert solve(dp=2, pp=1) == (1, 1, 2)
    assert solve(dp=2, pp=4, micro_batch_size=3) == (3, 32, 192)
    assert solve(dp=2, pp=4, num_microbatches=5) == (1, 5, 10)
    assert solve(dp=2, pp=4, global_batch_size=16) == (1, 8, 16)


def test_a_default_batch_does_not_grow_beyond_what_is_sensible():
    _, count, whole = solve(dp=512, pp=8, sequence_length=8192)
    assert count == 32
    assert whole * 8192 > MAX_DEFAULT_TOKENS


def contradiction(dp, **train):
    """The only finding of a run with these sides."""
    sides = {"micro_batch_size": None, "num_microbatches": None, "global_batch_size": None}
    run = make_run(
        parallelism={"dp": dp}, hardware=CPU | {"gpus_per_node": dp}, train=sides | train
    )
    (finding,) = check_run(run)
    return finding


def test_a_contradiction_names_all_sides_and_the_legal_neighbours():
    assert str(contradiction(dp=4, global_batch_size=30, micro_batch_size=4)) == (
        "train.global_batch_size=30 [batch-triangle]: 30 is not micro_batch_size=4 x "
        "num_microbatches=(open) x dp=4 for any whole number. Legal here: 16, 32. "
        "Try train.global_batch_size=32."
    )


def test_three_sides_that_disagree_name_their_product():
    finding = contradiction(dp=2, global_batch_size=64, micro_batch_size=4, num_microbatches=2)
    assert finding.legal == [16]
    assert "micro_batch_size=4 x num_microbatches=2 x dp=2" in finding.reason


def test_a_batch_smaller_than_the_replicas_names_the_smallest_legal_one():
    assert contradiction(dp=8, global_batch_size=4).legal == [8]


def test_dp_that_the_other_degrees_leave_counts_as_known():
    run = make_run(
        parallelism={"tp": 2, "pp": 1, "dp": None},
        hardware=CPU | {"gpus_per_node": 8},
        train={"micro_batch_size": None, "num_microbatches": None, "global_batch_size": 6},
    )
    (finding,) = check_run(run)
    assert (finding.rule, finding.legal) == ("batch-triangle", [4, 8])
