"""The quickest links that any order of ranks gives to an axis: bounds are made of them."""

from __future__ import annotations

from functools import partial

from launcher.plan.encoder import encoder_job
from launcher.plan.execution import Job
from launcher.plan.links import Link, stride_link, transfer_s
from launcher.plan.operator_records import size_of


def quickest_tp(job: Job) -> Link:
    """Gathers are quickest on the nearest ranks; the tree of a small all-reduce need not be."""
    layout = job.layout
    strides = [1]
    while strides[-1] < layout.gpus_per_node and not job.execution.sequence_parallel:
        strides.append(2 * strides[-1])
    links = [stride_link(job.hardware, layout.gpus_per_node, each, layout.tp) for each in strides]
    sides = (job, encoder_job(job)) if job.model.encoder else (job,)
    quickest = {min(links, key=partial(_all_reduce_s, side)) for side in sides}
    if len(quickest) > 1:  # no order of ranks has both: what is common to them is no time at all
        return stride_link(job.hardware, layout.gpus_per_node, 1, 1)
    return quickest.pop()


def _all_reduce_s(job: Job, link: Link) -> float:
    payload = size_of(job).tokens * job.model.hidden_size * job.execution.element_bytes
    return transfer_s("all_reduce", payload, link)
