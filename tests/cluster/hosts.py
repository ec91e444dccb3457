"""Plain hosts for tests: the nodes of the test cluster, entered by a stand-in for ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.runs import ROOT, conf_dir
from tests.cluster.slurm import Cluster, wait_until

# As ssh: no variable of the caller, another directory, the words joined to one line for a shell.
# Open MPI calls it, too.
SSH = """\
#!/bin/bash
while [[ $1 == -* ]]; do [ "$1" != -o ] || shift; shift; done
host=$1; shift
pid=$(cat "{pids}/$host" 2>/dev/null) ||
    {{ echo "ssh: Could not resolve hostname $host: Name or service not known" >&2; exit 255; }}
cd /
exec nsenter --target "$pid" --net --uts --mount -- \
    env -i HOME="$HOME" PATH="$PATH" TMPDIR="${{TMPDIR:-/tmp}}" sh -c "$*"
"""
SSHD = """\
Port 22
HostKey {etc}/host_key
AuthorizedKeysFile {etc}/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
"""
SSH_CLIENT = """\
IdentityFile {etc}/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""
TOY = (
    "recipe=quickstart", "parallelism.pp=1", "parallelism.tp=2", "parallelism.dp=2",
    "parallelism.schedule=gpipe", "train.sequence_length=32", "train.micro_batch_size=2",
    "train.num_microbatches=1", "train.validation_batches=0", "model.num_layers=2",
    "model.hidden_size=32", "model.ffn_hidden_size=64", "optimizer.warmup_steps=5",
    "launch.check_nodes=false",
)  # fmt: skip


class Hosts:
    """Some nodes as hosts without a queue, and a shell from which runs are started on them."""

    def __init__(self, cluster: Cluster, folder: Path, names: tuple[str, ...]) -> None:
        self.cluster, self.folder, self.names = cluster, folder, names
        self.servers: list[subprocess.Popen[str]] = []
        self._programs, pids = folder / "programs", folder / "pids"
        self._programs.mkdir(parents=True)
        pids.mkdir()
        for name in names:
            (pids / name).write_text(str(cluster.pid(name)))
        self.ssh = folder / "enter"
        self.ssh.write_text(SSH.format(pids=pids))
        self.ssh.chmod(0o755)
        (self._programs / "ssh").symlink_to(self.ssh)

    def use_sshd(self) -> None:
        """A real server on every host, and the real client, in the place of the stand-in."""
        etc = self.folder / "etc"
        etc.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("key", "host_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / name)]
            subprocess.run(words, check=True)
        (etc / "sshd_config").write_text(SSHD.format(etc=etc))
        serve = f"exec {shutil.which('sshd')} -D -e -f {etc}/sshd_config"
        self.servers = [self.on(name, serve) for name in self.names]
        lines = [SSH_CLIENT.format(etc=etc)]
        lines += [f"Host {name}\n  HostName {self.cluster.address(name)}" for name in self.names]
        (etc / "ssh_config").write_text("\n".join(lines) + "\n")
        client = shutil.which("ssh")
        (self._programs / "ssh").unlink()
        (self._programs / "ssh").touch(mode=0o755)
        (self._programs / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {etc}/ssh_config "$@"\n')
        for name in self.names:
            wait_until(lambda name=name: self._answers(name), 30, f"sshd of {name} answers")

    def _answers(self, name: str) -> bool:
        words = [str(self._programs / "ssh"), "-o", "BatchMode=yes", name, "true"]
        return subprocess.run(words, capture_output=True, timeout=30).returncode == 0

    def end(self) -> None:
        """No server is left."""
        for server in self.servers:
            server.kill()
            server.wait(30)

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        path = f"{self._programs}:{os.environ['PATH']}"
        mpi = {"OMPI_MCA_plm_rsh_agent": str(self.ssh)}
        return {**clean, **mpi, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def words(self, verb: str, *words: str) -> list[str]:
        flags = ["--config-dir", str(conf_dir(self.folder))] if verb in ("run", "resume") else []
        return [sys.executable, "-m", "launcher", verb, *flags, *words]

    def launch(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """One command line, to its end."""
        return subprocess.run(
            self.words(verb, *words), env=self.environment, capture_output=True, text=True,
            timeout=240, check=False, cwd=self.folder,
        )  # fmt: skip

    def start(self, verb: str, *words: str) -> subprocess.Popen[str]:
        """One command line that goes on."""
        return subprocess.Popen(
            self.words(verb, *words), env=self.environment, text=True, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def on(self, host: str, command: str) -> subprocess.Popen[str]:
        """What somebody types on a host."""
        return subprocess.Popen(
            [str(self.ssh), "--", host, command], env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
