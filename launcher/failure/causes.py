"""Known ends of a training process: by which words they are known, and what starting again does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Again = Literal["helps", "elsewhere", "useless"]
"""Starting the same job again: may help, helps on other nodes, or ends the same way."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One way to end."""

    kind: str
    """Stable name; scripts may rely on it."""
    words: str
    """Regular expression, case ignored; the first row that is found in the error counts."""
    meaning: str
    """One sentence for people, without its final stop."""
    again: Again


UNKNOWN = Cause(
    kind="unknown", words="", meaning="an end that is not known by its words", again="helps"
)

# The order matters: what is more specific stands first. CUDA's words are those of its runtime
# (cudaGetErrorString), NCCL's of ncclGetErrorString and of PyTorch's watchdog, Slurm's of slurmd.
CAUSES = (
    Cause(
        kind="configuration",
        words=r"\bConfigError\b|\[(run-readable|unknown-key|wrong-type)\]",
        meaning="the configuration is not valid where the job runs",
        again="useless",
    ),
    Cause(
        kind="hang",
        words=r"\bHung\b.*no step within|no step within .* s\b",
        meaning="no step was finished in time; the stacks of all ranks say where each one waited",
        again="helps",
    ),
    Cause(
        kind="not_a_number",
        words=r"(loss|gradient norm) is (nan|-?inf)|\bNaN\b.*(loss|grad)|non-?finite",
        meaning="the training diverged: a loss or a gradient is not a finite number",
        again="useless",
    ),
    Cause(
        kind="bad_gpu",
        words=r"uncorrectable (ecc|nvlink) error|gpu is lost|fallen off the bus|"
        r"\bXid\b|hardware stack error|cuda error: unspecified launch failure|"
        r"unable to determine the device handle|cuda error: device.* unavailable",
        meaning="a GPU of this node is broken",
        again="elsewhere",
    ),
    Cause(
        kind="bad_node",
        words=r"\bBadNode\b|node check",
        meaning="a node did not pass the checks before the job",
        again="elsewhere",
    ),
    Cause(
        kind="driver",
        words=r"driver version is insufficient|no cuda-capable device|found no nvidia driver|"
        r"invalid device ordinal|no kernel image is available|driver/library version mismatch|"
        r"cuda driver initialization failed",
        meaning="driver, CUDA and PyTorch do not fit on this node, or its GPUs are not seen",
        again="elsewhere",
    ),
    Cause(
        kind="out_of_memory",
        words=r"cuda out of memory|outofmemoryerror|cuda error: out of memory|"
        r"cublas_status_alloc_failed|nccl.*(out of memory|failed to cuda malloc)",
        meaning="a GPU has too little memory for this layout",
        again="useless",
    ),
    Cause(
        kind="killed",
        words=r"^killed by signal SIGKILL",
        meaning="killed from outside: by the kernel because the node's RAM was full, by Slurm, or "
        "by hand",
        again="helps",
    ),
    Cause(
        kind="host_out_of_memory",
        words=r"oom[-_ ]?kill|out of memory|cannot allocate memory|can't allocate memory|"
        r"\bMemoryError\b|std::bad_alloc",
        meaning="the RAM of a node is too small for what its processes hold",
        again="useless",
    ),
    Cause(
        kind="disk_full",
        words=r"no space left on device|disk quota exceeded|\bENOSPC\b|\bEDQUOT\b",
        meaning="a disk or a quota is full",
        again="useless",
    ),
    Cause(
        kind="port_taken",
        words=r"address already in use|\bEADDRINUSE\b",
        meaning="the port at which the ranks were to meet was taken by another program",
        again="helps",
    ),
    Cause(
        kind="missing_module",
        words=r"modulenotfounderror|no module named|importerror|cannot open shared object file|"
        r"glibc.* not found|command not found|execve\(\).*no such file",
        meaning="the environment on this node lacks a program or a Python package",
        again="useless",
    ),
    Cause(
        kind="rendezvous",
        words=r"rendezvous\w*(error|timeout)|rendezvous.*(timed out|failed)|"
        r"client socket has timed out|failed to connect to|could not resolve|"
        r"name or service not known|no route to host|network is unreachable|distnetworkerror",
        meaning="the ranks did not meet: a node cannot be reached, or some never started",
        again="helps",
    ),
    Cause(
        kind="timeout",
        words=r"watchdog caught collective operation timeout|collective operation timeout|"
        r"timed out waiting \d+ms|socket timeout|wait timeout after|"
        r"operation timed out|timeouterror|timed out after",
        meaning="a collective waited in vain: another rank was too slow, stuck or gone",
        again="helps",
    ),
    Cause(
        kind="network",
        words=r"nccl\w* (error|warn)|ncclsystemerror|ncclremoteerror|ncclinternalerror|"
        r"ncclunhandledcudaerror|\bIBV_|infiniband|gloo/transport|connection (closed|reset) by "
        r"peer|broken pipe|connection refused|remote process exited|nccl communicator",
        meaning="the network between ranks failed, or a peer ended without a word",
        again="helps",
    ),
    Cause(
        kind="shared_memory",
        words=r"bus error|\bSIGBUS\b|/dev/shm|unable to open shared memory",
        meaning="the node's shared memory (/dev/shm) is full or too small",
        again="useless",
    ),
    Cause(
        kind="device_code",
        words=r"device-side assert|illegal memory access|misaligned address|cuda error|"
        r"cublas_status|cudnn_status",
        meaning="a kernel failed on the GPU; it is reported later than it happened",
        again="helps",
    ),
    Cause(
        kind="missing_file",
        words=r"filenotfounderror|no such file or directory|stale file handle|notadirectoryerror",
        meaning="a file that the job needs is not there on this node",
        again="useless",
    ),
    Cause(
        kind="no_permission",
        words=r"permissionerror|permission denied|read-only file system",
        meaning="the job may not read or write a file that it needs",
        again="useless",
    ),
    Cause(
        kind="bad_disk",
        words=r"input/output error|\bEIO\b|transport endpoint is not connected",
        meaning="a file system of this node fails",
        again="elsewhere",
    ),
    Cause(
        kind="run_in_use",
        words=r"two jobs would mix their files",
        meaning="another job works in this run directory",
        again="useless",
    ),
    Cause(
        kind="crashed",
        words=r"\bSIGSEGV\b|\bSIGABRT\b|\bSIGILL\b|segmentation fault|\bSIGFPE\b",
        meaning="a process crashed in compiled code",
        again="helps",
    ),
    Cause(
        kind="stopped_from_outside",
        words=r"killed by signal (SIGTERM|SIGINT|SIGHUP)",
        meaning="somebody or something ended the process by a signal",
        again="helps",
    ),
    Cause(
        kind="code",
        words=r"^(\w+\.)*\w*(Error|Exception)\b",
        meaning="the program raised an error of its own; the log has its traceback",
        again="useless",
    ),
)


def find_cause(error: str) -> Cause:
    """The cause that an error's text tells; UNKNOWN where none is told."""
    for cause in CAUSES:
        if re.search(cause.words, error, re.IGNORECASE):
            return cause
    return UNKNOWN


def telling_line(text: str) -> tuple[str, Cause] | None:
    """The last line of a log that tells a cause: for a process that ended without saying why.

    Echoes of another rank's end, and plain mentions of a file, tell nothing in a log.
    """
    for line in reversed(text.splitlines()[-_LOG_LINES:]):
        cause = find_cause(line)
        if cause.kind in _TOLD_BY_LOGS:
            return line.strip(), cause
    return None


_LOG_LINES = 400
_TOLD_BY_LOGS = frozenset(
    {
        "bad_gpu",
        "driver",
        "out_of_memory",
        "host_out_of_memory",
        "disk_full",
        "port_taken",
        "missing_module",
        "timeout",
        "shared_memory",
        "device_code",
        "rendezvous",
        "hang",
    }
)
