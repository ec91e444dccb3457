"""Why a job waits in Slurm's queue, in words, with the key to change where one would help."""

from __future__ import annotations

from launcher.submit.queue import QueueJob

# squeue(1), job reason codes, by their beginnings; the first row that fits counts.
_REASONS = (
    ("Resources", "for nodes to become free"),
    ("Priority", "jobs of higher priority come first"),
    ("BeginTime", "its earliest start has not come; a requeued job waits a moment"),
    ("DependencyNeverSatisfied", "for a job that failed: it will never start"),
    ("Dependency", "for the job before it"),
    ("JobArrayTaskLimit", "launch.array_limit tasks of the sweep run already"),
    ("JobHeldUser", "held by its user; `scontrol release` lets it go"),
    ("JobHeldAdmin", "held by an administrator"),
    ("launch_failed_requeued_held", "held, since a node could not start it; ask the site"),
    ("job_requeued_in_held_state", "held after its requeue; `scontrol release` lets it go"),
    ("PartitionTimeLimit", "launch.time_limit is above that of its partition"),
    ("PartitionNodeLimit", "hardware.num_nodes is above what its partition allows"),
    ("PartitionConfig", "its partition does not allow what it asks for (launch.partition)"),
    ("PartitionDown", "its partition is down (launch.partition)"),
    ("PartitionInactive", "its partition is inactive (launch.partition)"),
    ("AccountingPolicy", "an accounting limit (launch.account)"),
    ("InvalidAccount", "launch.account is not valid"),
    ("InvalidQOS", "launch.qos is not valid"),
    ("QOS", "a limit of its quality of service (launch.qos)"),
    ("Assoc", "a limit of its account (launch.account)"),
    ("Licenses", "for a licence"),
    ("ReservationDeleted", "launch.reservation is gone"),
    ("Reservation", "for its reservation to begin (launch.reservation)"),
    ("ReqNodeNotAvail", "nodes that it could use are down or reserved"),
    ("NodeDown", "a node that it needs is down"),
    ("BadConstraints", "no node is as launch.constraint, gres and mem ask"),
    ("Nodes_required_for_job_are_DOWN", "nodes that it could use are down or reserved"),
    ("SystemFailure", "after a failure of Slurm"),
    ("FrontEndDown", "no front-end node is up"),
    ("Cleaning", "for its earlier start to be cleaned up"),
    ("Prolog", "for the site's prolog on its nodes"),
)


def say_waiting(job: QueueJob) -> str:
    """`waiting: for nodes to become free (Resources)`; empty where Slurm gives no reason."""
    if not job.reason:
        return ""
    word = job.reason.strip("()").replace(" ", "_")
    words = next((words for begin, words in _REASONS if word.startswith(begin)), "")
    return f"waiting: {words} ({job.reason})" if words else f"waiting: {job.reason}"
