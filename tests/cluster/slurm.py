"""A real Slurm cluster of virtual nodes on this machine, for tests.

Every node is a network, host name and mount namespace with a slurmd of its own: its own address,
ports and loopback. The controller runs beside the tests. Several clusters may live on one machine:
each takes a number, held by a lock, that names its subnet, links and port. What is started here
ends with the process that started it, whatever ends that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from tests.cluster import config_files

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "ip")
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_MOST_CLUSTERS = 50


def why_not_here() -> str | None:
    """Why this machine cannot have a cluster; None where it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not found"
    if os.geteuid() != 0:
        return "virtual nodes need root"
    probe = ["unshare", "--net", "--uts", "--mount", "true"]
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    if result.returncode:
        return f"no namespaces for virtual nodes: {result.stderr.strip()}"
    return None


class Cluster:
    """One cluster, running from `start` to `stop`."""

    def __init__(self, num_nodes: int = 4, gpus: int = 2) -> None:
        self.num_nodes, self.gpus = num_nodes, gpus
        self.nodes = tuple(f"n{number}" for number in range(1, num_nodes + 1))
        self._lock, self._number = _take_number()
        self._subnet = f"10.77.{self._number}"
        # Unix sockets lie in it, so its path must be short.
        self.base = Path(tempfile.mkdtemp(prefix=f"slurm{self._number}-", dir="/tmp"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a shell on the submitting machine."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SRUN"))
        }
        return clean | {"SLURM_CONF": str(self.base / "etc" / "slurm.conf")}

    # Life of the cluster.

    def start(self) -> None:
        """All daemons, and all nodes idle; seconds."""
        self._remove_links()  # of a cluster with this number that was killed
        self._write_files()
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self._subnet}.254/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        run, log = self.base / "run", self.base / "log"
        self._spawn(
            "munged", "munged", "--foreground", f"--socket={run}/munge.sock",
            f"--key-file={self.base}/etc/munge.key", f"--pid-file={run}/munged.pid",
            f"--log-file={log}/munged.log", f"--seed-file={self.base}/state/munge.seed",
        )  # fmt: skip
        wait_until((run / "munge.sock").exists, 10, "munged answers")
        self._spawn("slurmctld", "slurmctld", "-D", "-i")
        for node in self.nodes:
            self.up(node)
        wait_until(lambda: len(self.idle_nodes()) == self.num_nodes, 30, "all nodes are idle")

    def stop(self) -> None:
        """End every process, remove links and files."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.slurm("scancel", "--full", "--user=root", timeout_s=5)
        for daemon in self._daemons.values():
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()
        self._remove_links()
        shutil.rmtree(self.base, ignore_errors=True)
        self._lock.close()

    # Commands.

    def slurm(self, *words: str, timeout_s: float = 30, check: bool = False) -> str:
        """Standard output of a Slurm command on the submitting machine."""
        result = subprocess.run(
            words, env=self.environment, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stderr
        return result.stdout

    def submit(self, script: Path, *options: str) -> str:
        """Submit a script; the id of its job."""
        return self.slurm("sbatch", "--parsable", *options, str(script), check=True).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`; empty where the controller does not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            shown = self.slurm("scontrol", "show", "job", "--oneliner", job_id)
            fields = (word.partition("=") for word in shown.split())
            return {key: value for key, sign, value in fields if sign}
        return {}

    def state(self, job_id: str) -> str:
        """PENDING, RUNNING, COMPLETED..."""
        return self.job(job_id).get("JobState", "")

    def wait_for(self, job_id: str, states: Iterable[str], timeout_s: float = 120) -> str:
        """The first of these states that the job has."""
        wanted = set(states)
        wait_until(
            lambda: self.state(job_id) in wanted, timeout_s, f"job {job_id} is {wanted}",
            lambda: str(self.job(job_id)),
        )  # fmt: skip
        return self.state(job_id)

    def job_nodes(self, job_id: str) -> list[str]:
        """Nodes of a running job, the first of its list first."""
        found = self.job(job_id).get("NodeList", "(null)")
        shown = self.slurm("scontrol", "show", "hostnames", found)
        return shown.split() if found != "(null)" else []

    def idle_nodes(self) -> list[str]:
        """Nodes that could take a job now."""
        return self.slurm("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split()

    # Faults.

    def up(self, node: str) -> None:
        """Start a node, or its slurmd again."""
        namespace, number = self._namespace(node), node.removeprefix("n")
        if not Path("/run/netns", namespace).exists():
            link = f"{self._bridge}-{number}"
            _run("ip", "netns", "add", namespace)
            _run("ip", "link", "add", link, "type", "veth", "peer", "eth0", "netns", namespace)
            _run("ip", "link", "set", link, "master", self._bridge, "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            address = f"{self._subnet}.{number}/24"
            _run("ip", "-n", namespace, "addr", "add", address, "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        (self.base / "spool" / node).mkdir(exist_ok=True)
        inside = 'hostname "$1"; mount --bind "$2" /etc/hosts; exec slurmd -D -N "$1"'
        self._spawn(
            node, "nsenter", f"--net=/run/netns/{namespace}", "unshare", "--uts", "--mount",
            "sh", "-c", inside, "sh", node, str(self.base / "etc" / "hosts"),
        )  # fmt: skip

    def kill_node(self, node: str) -> None:
        """A power cut: SIGKILL to everything on the node."""
        for _ in range(3):  # what was being started meanwhile, too
            for pid in self.processes(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._daemons[node].wait()

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL to the daemon alone; its jobs run on."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def cut(self, node: str) -> None:
        """Pull the network cable."""
        _run("ip", "link", "set", f"{self._bridge}-{node.removeprefix('n')}", "down")

    def join(self, node: str) -> None:
        """Plug it in again."""
        _run("ip", "link", "set", f"{self._bridge}-{node.removeprefix('n')}", "up")

    def mend(self) -> None:
        """Every node as it was at the start, whatever has happened to it."""
        for node in self.nodes:
            self.join(node)
            if self._daemons[node].poll() is not None:
                self.restart(node)

        def resumed() -> bool:
            down = self.slurm(
                "sinfo", "-h", "-N", "-p", "main", "-t", "down,drain,fail", "-o", "%N"
            )
            for node in down.split():
                self.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return len(self.idle_nodes()) == self.num_nodes

        wait_until(resumed, 60, "all nodes are idle again")

    def restart(self, node: str) -> None:
        """Switch it off and on: steps that outlived their slurmd end, too."""
        self.kill_node(node)
        self.up(node)

    def pid(self, node: str) -> int:
        """A process on a node, by which its namespaces can be entered."""
        return self._daemons[node].pid

    def address(self, node: str) -> str:
        """Of a node, as this machine reaches it."""
        return f"{self._subnet}.{node.removeprefix('n')}"

    def processes(self, node: str) -> list[int]:
        """Ids of all processes on a node."""
        result = subprocess.run(
            ["ip", "netns", "pids", self._namespace(node)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [int(word) for word in result.stdout.split()]

    # Parts.

    @property
    def _bridge(self) -> str:
        return f"slurm{self._number}"

    def _namespace(self, node: str) -> str:
        return f"slurm{self._number}-{node}"

    def _write_files(self) -> None:
        for name in ("etc", "run", "state", "log", "spool", "dev"):
            (self.base / name).mkdir()
        self.base.chmod(0o755)
        etc = self.base / "etc"
        key = etc / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for number in range(self.gpus):
            (self.base / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        host, count = socket.gethostname().partition(".")[0], self.num_nodes
        conf = config_files.slurm_conf(
            name=f"test{self._number}", host=host, subnet=self._subnet,
            port=16800 + self._number, base=self.base, count=count, gpus=self.gpus,
        )  # fmt: skip
        (etc / "slurm.conf").write_text(conf)
        (etc / "gres.conf").write_text(
            config_files.gres_conf(base=self.base, count=count, gpus=self.gpus)
        )
        (etc / "hosts").write_text(
            config_files.hosts_file(host=host, subnet=self._subnet, count=count)
        )

    def _spawn(self, name: str, *words: str) -> None:
        """A daemon that ends with this process."""
        with (self.base / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.base, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def _remove_links(self) -> None:
        # Both ends go with the one here; those of a deleted namespace would stay for a moment.
        for path in Path("/sys/class/net").glob(f"{self._bridge}-*"):
            subprocess.run(["ip", "link", "del", path.name], capture_output=True, check=False)
        for path in Path("/run/netns").glob(f"{self._bridge}-n*"):
            node = path.name.partition("-")[2]
            while pids := self.processes(node):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
            _run("ip", "netns", "del", path.name)
        if Path("/sys/class/net", self._bridge).exists():
            _run("ip", "link", "del", self._bridge)


def wait_until(
    seen: Callable[[], object], timeout_s: float, what: str, why: Callable[[], str] = str
) -> None:
    """Poll; AssertionError with the reason where it does not happen."""
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}. {why()}"
        time.sleep(0.1)


def _take_number() -> tuple[IO[str], int]:
    for number in range(1, _MOST_CLUSTERS):
        lock = open(f"/tmp/slurm-test-cluster-{number}.lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return lock, number
    raise AssertionError(f"{_MOST_CLUSTERS} clusters on this machine")


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(*words: str) -> None:
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stderr}"
