"""Where and how a job is submitted: the keys of a site, a queue and a container."""

from typing import Annotated, Literal

from launcher.config.record import Positive, PositiveFloat, Record
from launcher.config.record_fields import made
from launcher.config.record_marks import LISTED, Range
from launcher.config.resume_class import Safe

Texts = Annotated[tuple[str, ...], LISTED]
Count = Annotated[int, Range(ge=0, le=1_000_000)]


class Launch(Record):
    """Where the job is submitted."""

    name: Safe[Literal["local", "slurm", "torchrun", "mpirun"]]
    """local: torchrun here; slurm: sbatch; torchrun: a plain list of hosts; mpirun: Open MPI starts
    the agents of the hosts."""

    # The queue. None everywhere: the site's default, the option is not given.
    job_name: Safe[str | None] = None
    """Name in the queue; None: the run's name."""
    partition: Safe[str | None] = None
    """Slurm partition; several with commas between."""
    account: Safe[str | None] = None
    """Slurm account."""
    qos: Safe[str | None] = None
    """Slurm quality of service."""
    time_limit: Safe[str | None] = None
    """Slurm time limit as text, e.g. "12:00:00"."""
    constraint: Safe[str | None] = None
    """Features that the nodes must have, e.g. "h100&ib"."""
    reservation: Safe[str | None] = None
    """Slurm reservation."""
    nodelist: Safe[str | None] = None
    """Nodes that must be among the job's, e.g. "node[001-004]"."""
    exclude: Safe[str | None] = None
    """Nodes that must not be."""
    cpus_per_task: Safe[Positive | None] = None
    """Cores for the one torchrun of each node. None: the node's, by `exclusive`."""
    mem: Safe[str | None] = None
    """Memory per node as text, e.g. "200G"; "0" is all of it."""
    gpu_type: Safe[str | None] = None
    """Type of the GPUs as the cluster calls it, e.g. h100: --gpus-per-node=h100:8."""
    gres: Safe[str | None] = None
    """What is asked for per node in the place of --gpus-per-node, e.g. "gpu:h100:8"; "none": no
    GPU option at all, for sites where a partition means its GPUs."""
    exclusive: Safe[bool] = True
    """Whole nodes."""
    sbatch_options: Safe[Texts] = ()
    """Further options of sbatch, each one text: "--mail-type=END"."""
    array_limit: Safe[Positive | None] = None
    """Tasks of a sweep's job array that may run at once; None: all."""

    # What is around the workers.
    modules: Safe[Texts] = ()
    """Environment modules that the job loads, in this order."""
    conda: Safe[str | None] = None
    """Conda environment that the job activates, by name or by path."""
    venv: Safe[str | None] = None
    """Virtual environment (of uv or python -m venv) that the job activates: its folder."""
    setup: Safe[Texts] = ()
    """Further lines of bash that make the environment on a node; written into the script as they
    are, after the modules, conda and venv."""
    python: Safe[str | None] = None
    """Interpreter on the nodes, outside of any container. None: the one that runs this command, or
    `python` of the environment that `conda` or `venv` names."""
    container_python: Safe[str] = "python3"
    """Interpreter inside the container; the launcher brings its own code, the image the rest."""
    env: Safe[dict[str, str]] = made(dict)
    """Variables of the workers by name; stand in the run's files, so nothing secret."""
    secrets: Safe[Texts] = ()
    """Names of variables that jobs inherit from the submitting shell; values are never written."""
    container: Safe[Literal["pyxis", "apptainer"] | None] = None
    """What starts a container on each node: Slurm's plugin Pyxis (Enroot) or Apptainer."""
    image: Safe[str | None] = None
    """pyxis: "nvcr.io#nvidia/pytorch:25.01-py3" or a .sqsh file; apptainer: a .sif file."""
    mounts: Safe[Texts] = ()
    """Paths seen inside the container, each "PATH" or "PATH:INSIDE" or "PATH:INSIDE:ro"; the run
    directory, and data that exist here, are always seen."""
    container_options: Safe[Texts] = ()
    """Further options: of srun for pyxis ("--container-writable"), of apptainer exec ("--rocm")."""
    threads_per_rank: Safe[Positive | None] = None
    """OMP_NUM_THREADS of a worker; None: cores divided among the ranks of the node, at least 1."""

    # What happens when a job ends before the run does.
    requeue: Safe[bool] = True
    """The job goes back to the queue at its time limit, when preempted and after a failed node."""
    follow_ups: Safe[Count] = 0
    """Jobs submitted behind the first one, each of which continues the run: for sites that allow
    no requeue, with requeue=false."""
    max_requeues: Safe[Count | None] = None
    """Requeues at the most; None: as many as make progress."""
    max_failures_without_progress: Safe[Positive] = 3
    """So many failures in a row without a further saved step end the run."""
    signal_seconds: Safe[Annotated[int, Range(ge=1, le=65535)]] = 120
    """Notice in seconds before the time limit: the workers save and end."""
    max_restarts: Safe[Count] = 1
    """Restarts of the workers by torchrun itself, where all nodes are still there."""
    hang_timeout_s: Safe[PositiveFloat | None] = 1800.0
    """Seconds without a step, a batch of a validation or a save after which a rank dumps its stacks
    and ends, so that the job starts again. The first step may take three times as long, at least
    10 minutes. null: only torch's timeout of a collective ends a hung job, after 10 minutes."""
    check_nodes: Safe[bool] = True
    """Before the model is built, all nodes look at their GPUs, the shared run directory, a matrix
    product and an all-reduce; a bad node is named and excluded. Not with launch=local."""
    check_timeout_s: Safe[PositiveFloat] = 300.0
    """Seconds after which a node that has not passed its checks is bad; longer than the slowest
    container needs to start."""

    # launch=torchrun and launch=mpirun.
    hosts: Safe[Texts] = ()
    """Names or addresses of the machines, one per node, the first one where the agents meet. None:
    this machine alone; with mpirun what Open MPI finds."""
    start: Safe[Literal["ssh", "manual"]] = "ssh"
    """torchrun. ssh: this command starts the agent of every host; manual: it prints the command
    for each of them."""
    rendezvous_endpoint: Safe[str | None] = None
    """HOST:PORT where the agents meet, on the first host; None: its name, and a port that is free
    there."""
