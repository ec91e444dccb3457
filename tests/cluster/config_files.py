"""The configuration files of a test cluster, as text."""

from __future__ import annotations

from pathlib import Path

SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again: usually 120 s, and 5
# is the least.
AuthInfo=socket={base}/run/munge.sock,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# CPUs and memory are what is written here, not what this machine has.
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdTimeout=6
SlurmctldTimeout=10
MessageTimeout=5
InactiveLimit=0
KillWait=3
WaitTime=0
MinJobAge=3600
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobCompType=jobcomp/filetxt
JobCompLoc={base}/log/jobcomp.txt
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=n[1-{count}] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=brief Nodes=n[1-{count}] MaxTime=10 State=UP PriorityTier=1 PreemptMode=OFF
"""
NODE = (
    "NodeName=n{number} NodeHostname=n{number} NodeAddr={subnet}.{number} Port=16818 "
    "CPUs=8 RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN"
)


def slurm_conf(
    *, name: str, host: str, subnet: str, port: int, base: Path, count: int, gpus: int
) -> str:
    """slurm.conf of nodes n1, n2...; partition `urgent` preempts `main`, `brief` ends early."""
    nodes = [NODE.format(number=n, subnet=subnet, gpus=gpus) for n in range(1, count + 1)]
    return SLURM_CONF.format(
        name=name,
        host=host,
        address=f"{subnet}.254",
        port=port,
        base=base,
        nodes="\n".join(nodes),
        count=count,
    )


def gres_conf(*, base: Path, count: int, gpus: int) -> str:
    """GPUs that are links to /dev/null: Slurm asks for character devices."""
    last = f"[0-{gpus - 1}]" if gpus > 1 else "0"
    devices = f"{base}/dev/nvidia{last}"
    return (
        "AutoDetect=off\n"
        f"NodeName=n[1-{count}] Name=gpu Count={gpus} File={devices} Flags=nvidia_gpu_env\n"
    )


def hosts_file(*, host: str, subnet: str, count: int) -> str:
    """/etc/hosts as every node sees it."""
    lines = ["127.0.0.1 localhost", f"{subnet}.254 {host}"]
    lines += [f"{subnet}.{number} n{number}" for number in range(1, count + 1)]
    return "\n".join(lines) + "\n"
