"""The files of a run directory: the only place that names them."""

from __future__ import annotations

from pathlib import Path

from launcher.frozen import frozen


@frozen
class RunFiles:
    """Paths of one run directory."""

    root: Path
    """The run directory itself."""

    @property
    def table(self) -> Path:
        """Beside the run directory: what every run that ended well there measured, a row each."""
        return self.root.parent / "measured_runs.csv"

    @property
    def run(self) -> Path:
        """Resolved configuration."""
        return self.root / "run.yaml"

    @property
    def plan(self) -> Path:
        """The plan that the workers follow."""
        return self.root / "plan.json"

    @property
    def deepspeed(self) -> Path:
        """What DeepSpeed is told; not there under another engine."""
        return self.root / "ds_config.json"

    @property
    def command(self) -> Path:
        """The exact command of a local run."""
        return self.root / "command.sh"

    @property
    def job(self) -> Path:
        """The exact script of a Slurm job."""
        return self.root / "job.sbatch"

    @property
    def logs(self) -> Path:
        """One log per rank, and the launcher's own."""
        return self.root / "logs"

    @property
    def launcher_log(self) -> Path:
        """What torchrun said."""
        return self.logs / "torchrun.log"

    def rank_log(self, rank: int) -> Path:
        """Everything that a rank wrote to its standard output and error."""
        return self.logs / f"rank_{rank}.log"

    def rank_error(self, rank: int) -> Path:
        """Why a rank ended, where it could still say so."""
        return self.logs / f"rank_{rank}.error.json"

    @property
    def rank_nodes(self) -> Path:
        """The node of every rank, by rank."""
        return self.logs / "rank_nodes.json"

    @property
    def checkpoints(self) -> Path:
        """Saved states."""
        return self.root / "checkpoints"

    @property
    def save_request(self) -> Path:
        """Asks a running job for a checkpoint; removed when the copy begins."""
        return self.checkpoints / ".save_now"

    @property
    def has_saved(self) -> Path:
        """Marks a run that has saved: it never starts from the beginning by itself again."""
        return self.root / "has_saved"

    @property
    def data(self) -> Path:
        """Token files prepared for this run."""
        return self.root / "data"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def tracker(self) -> Path:
        """Name of the run with its tracker: the same one whenever the run goes on."""
        return self.root / "tracker_id"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.root / "tensorboard"

    @property
    def summary(self) -> Path:
        """Predicted beside measured, and the outcome."""
        return self.root / "summary.json"

    @property
    def verification(self) -> Path:
        """What `launch verify` compared."""
        return self.root / "verify.json"

    @property
    def attempts(self) -> Path:
        """What each earlier attempt of a resumed run had in place of the present files."""
        return self.root / "attempts"

    def attempt(self, number: int) -> Path:
        """Files of an attempt that is over; the first is 1."""
        return self.attempts / f"{number:04d}"

    @property
    def pending(self) -> Path:
        """New files of a resume that was cut off while it put them in place."""
        return self.attempts / "pending"

    @property
    def resume(self) -> Path:
        """Of a resumed run: from which step, and what was changed."""
        return self.root / "resume.json"

    @property
    def launch_lock(self) -> Path:
        """Held by the command that follows the run."""
        return self.root / "launch.lock"

    @property
    def job_lock(self) -> Path:
        """Held by the first rank of a running job."""
        return self.root / "job.lock"

    @property
    def submitted(self) -> Path:
        """Which job was submitted: its kind, id and time."""
        return self.root / "job.json"

    @property
    def cancelled(self) -> Path:
        """Who asked for the end of the job, and when: it is not to start again by itself."""
        return self.root / "cancelled.json"

    @property
    def code(self) -> Path:
        """Commit of the code that was planned, and whether files were changed."""
        return self.root / "code.json"

    @property
    def code_patch(self) -> Path:
        """The changes of tracked files against that commit."""
        return self.root / "code.patch"

    @property
    def starts(self) -> Path:
        """One folder for every start of the job."""
        return self.root / "jobs"

    def start(self, job_id: str, restart: int) -> StartFiles:
        """Of one start; `restart` counts how often the queue has started this job again."""
        return StartFiles(root=self.starts / f"{job_id}.{restart}")


@frozen
class StartFiles:
    """Paths of one start of a job."""

    root: Path
    """RUN/jobs/<job id>.<restart>"""

    @property
    def nodes(self) -> Path:
        """On which nodes, since when and from which step."""
        return self.root / "nodes.json"

    @property
    def rendezvous(self) -> Path:
        """Where the agents meet: host, port and the number of the try."""
        return self.root / "rendezvous.json"

    def again(self, node: str) -> Path:
        """A node's wish that all meet once more."""
        return self.root / f"again_{node}.json"

    def check(self, node: str) -> Path:
        """What was found wrong with a node before the model was built."""
        return self.root / f"check_{node}.json"

    @property
    def checks(self) -> Path:
        """What nodes say of themselves before the job, until the first one has judged."""
        return self.root / "checks"

    def report(self, node: str) -> Path:
        """What one node says of itself."""
        return self.checks / f"{node}.json"

    @property
    def check_meeting(self) -> Path:
        """Where the processes of the checks meet."""
        return self.checks / "meeting"

    @property
    def check_verdict(self) -> Path:
        """Whether the nodes may train, by the first one."""
        return self.root / "checked.json"

    def agent(self, node: str) -> Path:
        """How the program that looks after a node's workers is, or ended."""
        return self.root / f"agent_{node}.json"

    def hang(self, rank: int) -> Path:
        """Stacks of a rank that took no step for too long."""
        return self.root / f"hang_{rank}.txt"

    def torchrun_log(self, node: str) -> Path:
        """What torchrun said on a node."""
        return self.root / f"torchrun_{node}.log"

    @property
    def end(self) -> Path:
        """How it ended and why; not there where the first node was lost."""
        return self.root / "end.json"
