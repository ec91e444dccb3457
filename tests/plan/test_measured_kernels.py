"""A measured table overrides the model where it has values, and is refused where it is broken."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.hardware_schema import MeasuredKernel
from launcher.config.kernel_table import COLUMNS, with_kernels
from launcher.config.local_hardware import detect_machine
from launcher.config.schema import Gpu, Hardware
from launcher.errors import RunFailed
from launcher.plan.kernels import Gemm, attention_s, elementwise_s, gemm_s, traffic_s
from launcher.plan.links import make_link, transfer_s
from launcher.submit.calibrate import calibrate
from tests.factory import h100

PLAIN = Gpu.model_validate(h100(1)["gpu"] | {"multiprocessors": 132})


def gpu(*rows):
    names = ("kind", "type", "m", "n", "k", "seconds")
    kernels = [dict(zip(names, row, strict=True)) for row in rows]
    return Gpu.model_validate(h100(1)["gpu"] | {"multiprocessors": 132, "kernels": kernels})


def test_a_measured_product_takes_its_measured_time():
    measured = gpu(("matmul", "bf16", 4096, 4096, 4096, 0.5))
    assert gemm_s(Gemm(m=4096, n=4096, k=4096), "bf16", measured) == pytest.approx(0.5)


def test_sizes_between_are_corrected_as_their_neighbours_are():
    size, other = Gemm(m=4096, n=4096, k=4096), Gemm(m=8192, n=4096, k=4096)
    twice = 2 * gemm_s(size, "bf16", PLAIN)
    measured = gpu(("matmul", "bf16", 4096, 4096, 4096, twice))
    assert gemm_s(other, "bf16", measured) == pytest.approx(2 * gemm_s(other, "bf16", PLAIN))


def test_other_types_and_kinds_stay_as_modelled():
    measured = gpu(("matmul", "bf16", 4096, 4096, 4096, 0.5))
    size = Gemm(m=4096, n=4096, k=4096)
    assert gemm_s(size, "fp32", measured) == gemm_s(size, "fp32", PLAIN)
    assert elementwise_s(1e9, 1, measured) == elementwise_s(1e9, 1, PLAIN)


def test_attention_and_memory_are_corrected_too():
    measured = gpu(("memory", "fp32", 2**26, 1, 1, 1.0), ("attention", "bf16", 4096, 8, 128, 1.0))
    assert elementwise_s(float(2**26), 1, measured) == pytest.approx(1.0)
    flops = 4.0 * 4096 * 2048 * 8 * 128
    one = attention_s(flops, 2048, 128, "flash", "bf16", "forward", measured)
    assert one == pytest.approx(1.0)
    back = attention_s(flops, 2048, 128, "flash", "bf16", "backward", measured)
    assert back > one


@pytest.mark.parametrize("share", [None, 1.0, 0.5])
def test_a_table_that_is_the_model_changes_nothing(share):
    plain = PLAIN.model_copy(update={"core_share": share})
    sizes = (2**16, 2**22, 2**28)
    overhead_s = 0.0 if share else plain.op_overhead_s  # a row on a core does not show it
    rows = [("memory", "fp32", size, 1, 1, overhead_s + traffic_s(size, plain)) for size in sizes]
    table = gpu(*rows).model_copy(update={"core_share": share})
    for size in sizes:
        for kernels in (1, 4):
            modelled = elementwise_s(float(size * kernels), kernels, plain)
            assert elementwise_s(float(size * kernels), kernels, table) == pytest.approx(modelled)


HEADER = ",".join(COLUMNS)


def table(tmp_path, *lines, header=HEADER, device="cpu"):
    path = tmp_path / "kernels.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    gpu = {"peak_flops": {"fp32": 5e10}}
    return {"hardware": {"kernels": str(path), "device": device, "gpu": gpu}}


def test_processes_that_share_a_core_take_as_much_longer(tmp_path):
    values, findings = with_kernels(table(tmp_path, "cpu,1e11,matmul,fp32,8,8,8,0.25"))
    assert not findings
    (row,) = values["hardware"]["gpu"]["kernels"]
    assert row == {"kind": "matmul", "type": "fp32", "m": 8, "n": 8, "k": 8, "seconds": 0.5}


@pytest.mark.parametrize(
    "line", ["cpu,1,matmul,fp32,8,8,0,1", "cpu,1,matmul,fp32,8,8,8,-1", "cpu,1,magic,fp32,8,8,8,1",
             "cpu,1,matmul,fp32,8,8,8,nan", "cpu,1,matmul,fp32,eight,8,8,1", ""],
)  # fmt: skip
def test_a_broken_table_is_refused_with_its_reason(tmp_path, line):
    _, (finding,) = with_kernels(table(tmp_path, line))
    assert finding.rule == "kernel-table-readable"
    assert finding.field == "hardware.kernels"


@pytest.mark.parametrize(
    ("line", "reason"),
    [("cpu,1,matmul,fp32,8,8", "line 3: no k, seconds"),
     ("cpu,1,matmul,fp32,8,8,8.5,1", "line 3: k=8.5 is not a whole number"),
     ("cpu,1,matmul,fp32,8,8,8,soon", "line 3: seconds=soon is not a positive number"),
     ("H100,1,matmul,fp32,8,8,8,1", "line 3: device=H100 is no CPU")],
)  # fmt: skip
def test_a_broken_line_is_named_with_its_cell(tmp_path, line, reason):
    _, (finding,) = with_kernels(table(tmp_path, "cpu,1,matmul,fp32,8,8,8,1", line))
    assert finding.reason == f"not a table of measured kernels: {reason}"


def test_kernels_of_a_cpu_correct_no_gpu(tmp_path):
    line = "cpu core,1e11,memory,fp32,1024,1,1,0.25"
    _, (finding,) = with_kernels(table(tmp_path, line, device="cuda"))
    assert finding.reason.endswith("line 2: device=cpu core is no GPU")


def test_a_table_with_a_byte_order_mark_is_read(tmp_path):
    values, findings = with_kernels(
        table(tmp_path, "cpu,1,matmul,fp32,8,8,8,1", header="\ufeff" + HEADER)
    )
    assert not findings
    assert values["hardware"]["gpu"]["kernels"]


@pytest.mark.parametrize("name", ["train.py", "nowhere/kernels.csv", "."])
def test_measuring_begins_only_where_its_table_can_be_written(tmp_path, monkeypatch, name):
    (tmp_path / "train.py").write_text("print('mine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.submit.calibrate.calibrate", lambda *_: pytest.fail("measured"))
    assert main(["calibrate", name]) == 2
    assert (tmp_path / "train.py").read_text() == "print('mine')"


def test_an_earlier_table_is_measured_anew(tmp_path, monkeypatch, capsys):
    path = tmp_path / "kernels.csv"
    path.write_text(HEADER + "\n")
    monkeypatch.setattr("launcher.submit.calibrate.calibrate", lambda *_: ("measured\n", None))
    assert main(["calibrate", str(path)]) == 0
    assert "measured" in capsys.readouterr().out


def test_exchanges_that_cannot_be_measured_are_said_and_the_kernels_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("launcher.submit.calibrate.calibrate", lambda *_: ("rows\n", "no gloo"))
    assert main(["calibrate", str(tmp_path / "kernels.csv")]) == 0
    said = capsys.readouterr()
    assert said.err == "launch: exchanges between ranks were not measured: no gloo\n"
    assert said.out.startswith("rows\n")


KERNELS = HEADER + "\ncpu core,1e11,matmul,fp32,8,8,8,1\n"


def measurements(monkeypatch, kernels, refused):
    """Each writes what it is told to, or ends with an error as torchrun shows it."""

    def run(command, **_):
        if "launcher.runtime.calibrate" in command:
            Path(command[-1]).write_text(kernels)
        elif refused in command:
            said = "[rank0]: RuntimeError: no such interface\nChildFailedError:\n=====\n"
            raise subprocess.CalledProcessError(1, "python", stderr=said)
        else:
            with Path(command[-1]).open("a") as rows:
                rows.write("cpu core,1e11,all_reduce,fp32,8,2,1,1\n")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)


def test_a_measurement_that_breaks_leaves_what_others_found(tmp_path, monkeypatch):
    measurements(monkeypatch, KERNELS, refused="--nproc-per-node=4")
    path, machine = tmp_path / "kernels.csv", replace(detect_machine(), gpus=())
    table, note = calibrate(machine, path)
    assert note == "4 ranks: RuntimeError: no such interface"
    assert path.read_text() == table == KERNELS + "cpu core,1e11,all_reduce,fp32,8,2,1,1\n"


def test_what_plans_could_not_read_replaces_no_table(tmp_path, monkeypatch):
    measurements(monkeypatch, KERNELS + "[Gloo] Rank 0 is connected\n", refused="")
    path = tmp_path / "kernels.csv"
    path.write_text(KERNELS)
    with pytest.raises(RunFailed, match="line 3: no peak_flops_fp32"):
        calibrate(detect_machine(), path)
    assert path.read_text() == KERNELS


HALF = 5e10
"""Peak of the share that `table`'s processes have of a core of 1e11."""


def linked(tmp_path, *rows, cores=1.0):
    lines = [f"cpu core,{1e11 * cores},{row}" for row in ("matmul,fp32,8,8,8,1", *rows)]
    values, findings = with_kernels(table(tmp_path, *lines))
    assert not findings
    return [row["seconds"] for row in values["hardware"]["gpu"]["kernels"]]


def test_exchanges_of_processes_that_share_cores_take_as_much_longer(tmp_path):
    assert linked(tmp_path, "all_reduce,fp32,4096,2,1,0.25") == [2.0, 0.5]
    # Four ranks that had half a core each when they were measured have no less now.
    values, _ = with_kernels(
        table(tmp_path, "cpu,1e11,matmul,fp32,8,8,8,1", "cpu,5e10,all_reduce,fp32,4096,4,1,0.25")
    )
    assert values["hardware"]["gpu"]["kernels"][1]["seconds"] == 0.25


def test_several_cores_make_kernels_quicker_and_no_exchange(tmp_path):
    kernel_s, exchange_s = linked(tmp_path, "send_recv,fp32,4096,2,1,0.25", cores=0.25)
    assert kernel_s == pytest.approx(1.0 * 2.5e10 / HALF / 0.8)
    assert exchange_s == 0.25


def test_a_group_of_one_exchanges_nothing(tmp_path):
    _, (finding,) = with_kernels(table(tmp_path, "cpu,1e11,all_reduce,fp32,4096,1,1,0.25"))
    assert finding.reason.endswith("line 2: n=1: an exchange is between 2 ranks or more")


def with_rows(rows):
    hardware = Hardware.model_validate(h100(2))
    kernels = tuple(MeasuredKernel.model_validate(row) for row in rows)
    gpu = hardware.gpu.model_copy(update={"kernels": kernels})
    return hardware.model_copy(update={"gpu": gpu})


def link_with(rows):
    return make_link(with_rows(rows), 4, 1)


def test_a_measured_exchange_takes_its_measured_time_and_others_are_corrected_alike():
    hardware = Hardware.model_validate(h100(2))
    rows = [{"kind": "all_reduce", "type": "fp32", "m": 2**20, "n": 4, "k": 1, "seconds": 0.5}]
    measured = with_rows(rows)
    plain, link = make_link(hardware, 4, 1), make_link(measured, 4, 1)
    assert transfer_s("all_reduce", 2**20, link) == pytest.approx(0.5)
    ratio = 0.5 / transfer_s("all_reduce", 2**20, plain)
    other = transfer_s("all_reduce", 2**24, link)
    assert other == pytest.approx(ratio * transfer_s("all_reduce", 2**24, plain))
    assert transfer_s("all_gather", 2**20, link) == transfer_s("all_gather", 2**20, plain)
    # Across nodes it passes the same links: no quicker than inside, and else as modelled.
    across = make_link(hardware, 4, 2), make_link(measured, 4, 2)
    assert transfer_s("all_reduce", 2**20, across[1]) == transfer_s("all_reduce", 2**20, link)
    assert transfer_s("all_gather", 2**20, across[1]) == transfer_s("all_gather", 2**20, across[0])
    rows = [{"kind": "all_to_all", "type": "bf16", "m": 2**20, "n": 4, "k": 1, "seconds": 0.5}]
    assert transfer_s("all_to_all", 2**20, link_with(rows)) == pytest.approx(0.5)


def test_a_row_of_one_rank_says_nothing():
    rows = [{"kind": "all_reduce", "type": "fp32", "m": 2**20, "n": 1, "k": 1, "seconds": 0.5}]
    assert transfer_s("all_reduce", 2**20, link_with(rows)) < 0.1


def test_a_table_without_its_columns_is_refused(tmp_path):
    _, (finding,) = with_kernels(table(tmp_path, header="a,b"))
    assert "no column device" in finding.reason
