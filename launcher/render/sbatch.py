"""The Slurm script: one torchrun per node under srun, from a readable template."""

from __future__ import annotations

import shlex
from pathlib import Path
from string import Template

from launcher.plan.records import Plan
from launcher.render.environment import worker_environment
from launcher.render.torchrun import WORKER


def render_sbatch(plan: Plan, template: str, run_dir: Path, python: str, name: str) -> str:
    """`job.sbatch` from a template with ${holes}.

    Args:
        plan: what runs.
        template: text of slurm/torchrun.sbatch.
        run_dir: absolute path of the run directory, visible on every node.
        python: interpreter on the nodes.
        name: of the job where launch.job_name is open.

    """
    launch = plan.run.launch
    options = {
        "job-name": launch.job_name or name,
        "partition": launch.partition,
        "account": launch.account,
        "time": launch.time_limit,
    }
    # Cores of the nodes are unknown here; Slurm tells the job, and the default is 1 per rank.
    variables = worker_environment(plan, cores=plan.layout.gpus_per_node)
    return Template(template).substitute(
        options="\n".join(
            f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items() if value
        ),
        nodes=plan.layout.nodes,
        gpus_per_node=plan.layout.gpus_per_node,
        gpu_option=(
            f"#SBATCH --gpus-per-node={plan.layout.gpus_per_node}"
            if plan.run.hardware.device == "cuda"
            else "# no GPUs: workers compute on the CPU"
        ),
        run_dir=shlex.quote(str(run_dir)),
        # sbatch(1): %j is the job's id, and %% a per cent sign.
        log=shlex.quote(str(run_dir / "logs").replace("%", "%%") + "/slurm-%j.log"),
        exports="\n".join(
            f"# {variable.why}\nexport {variable.name}={shlex.quote(variable.value)}"
            for variable in variables
        ),
        python=shlex.quote(python),
        worker=WORKER,
    )
