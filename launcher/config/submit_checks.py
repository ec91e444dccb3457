"""Checks of a job before it is submitted, and of the words that name a run, as rules."""

from __future__ import annotations

# Id, what it blames, what must hold, why.
SUBMIT_CHECKS = (
    ("slurm-not-here", "launch", "Slurm's commands are here", "Nothing else can submit."),
    ("slurm-unreachable", "launch", "Slurm answers", "The job would be nowhere."),
    ("slurm-refused", "launch", "sbatch --test-only takes the script", "Slurm's reason follows."),
    ("partition-known", "launch.partition", "the cluster has the partition", "A typo waits long."),
    ("partition-up", "launch.partition", "the partition is up", "The job would wait for it."),
    (
        "time-within-partition",
        "launch.time_limit",
        "the partition allows the time limit",
        "Most sites let such a job wait for ever.",
    ),
    (
        "nodes-in-partition",
        "hardware.num_nodes",
        "the partition has so many nodes",
        "The job would never start.",
    ),
    (
        "gpus-in-partition",
        "hardware.gpus_per_node, launch.gpu_type",
        "enough nodes of the partition have these GPUs",
        "The job would never start.",
    ),
    (
        "account-known",
        "launch.account",
        "the user has the account, where sacctmgr says so",
        "Slurm finds out after submission.",
    ),
    (
        "qos-known",
        "launch.qos",
        "the account has the quality of service, where sacctmgr says so",
        "Slurm finds out after submission.",
    ),
    (
        "run-dir-not-writable",
        "--run-dir",
        "files can be written in the run directory",
        "A job whose log cannot be opened fails without a word.",
    ),
    (
        "run-dir-for-slurm",
        "--run-dir",
        "the run directory's path can be an option of Slurm and a mount",
        "Slurm writes no log to a path with a backslash.",
    ),
    ("data-visible", "data.path", "the data can be read", "The job would fail on its first node."),
    (
        "path-visible",
        "launch.image, mounts, venv, python",
        "the path is there",
        "The job would fail on its first node.",
    ),
    (
        "secret-set",
        "launch.secrets",
        "the submitting shell has the variable",
        "Jobs inherit it from there.",
    ),
    ("conda-there", "launch.conda", "there is a conda to activate it", "The job would fail."),
    ("setup-readable", "launch.setup", "bash can read the script", "The job would fail."),
    ("one-run", "RUN", "the word means one run", "A sweep has several runs."),
    ("no-such-rank", "--rank", "the rank has written a log", "There is nothing to show."),
    (
        "starter-not-here",
        "launch",
        "ssh is here for launch=torchrun, mpirun for launch=mpirun",
        "Nothing else starts the hosts; launch.start=manual needs neither.",
    ),
    (
        "host-reachable",
        "launch.hosts",
        "ssh reaches every host without a password",
        "The other hosts would wait for it.",
    ),
    (
        "run-dir-shared",
        "launch.hosts",
        "every host sees a file that is made where the run directory will be",
        "Hosts meet by files there, and read the run from it.",
    ),
    (
        "python-on-hosts",
        "launch.hosts",
        "every host has the interpreter",
        "Its agent could not start.",
    ),
    (
        "one-array",
        "--multirun",
        "the runs of a sweep ask the queue for the same",
        "They are the tasks of one job array.",
    ),
)
