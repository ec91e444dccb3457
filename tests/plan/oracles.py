"""The orders of torch.distributed.pipelining, read out without starting a process.

Its schedule classes compute a rank's actions from a few numbers; the classes are made without
their constructors, which want live stages, and given those numbers.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.pipelining import schedules as torch_schedules

from launcher.plan.schedule_records import Action, Chain, Orders

CLASSES = {
    "gpipe": torch_schedules.ScheduleGPipe,
    "1f1b": torch_schedules.Schedule1F1B,
    "interleaved_1f1b": torch_schedules.ScheduleInterleaved1F1B,
    "zb_h1": torch_schedules.ScheduleInterleavedZeroBubble,
    "zb_v": torch_schedules.ScheduleZBVZeroBubble,
    "dualpipev": torch_schedules.ScheduleDualPipeV,
}
KINDS = {"FORWARD": "F", "BACKWARD_INPUT": "B", "BACKWARD_WEIGHT": "W", "FULL_BACKWARD": "B W"}


def accepts(name: str, num_stages: int, num_microbatches: int) -> bool:
    """Whether torch's constructor would take these numbers, and its order be right for them."""
    if name == "1f1b":
        return num_microbatches >= num_stages  # else its order runs out of microbatches
    if name in ("interleaved_1f1b", "zb_h1"):
        return num_microbatches % max(1, num_microbatches // num_stages) == 0
    return name != "dualpipev" or num_microbatches >= 2 * num_stages


def torch_orders(name: str, chain: Chain, num_microbatches: int) -> Orders:
    """Its compute actions, stage by stage; a whole backward is B and W where ours splits it."""
    schedule = _bare(name, chain, num_microbatches)
    if name in ("gpipe", "1f1b"):
        ranks = schedule._get_pipeline_order()
        return [_renumber(_convert(name, chain, rank)) for rank in ranks.values()]
    return [
        _convert(name, chain, schedule._calculate_single_rank_operations(stage))
        for stage in range(chain.num_stages)
    ]


def _renumber(order: list[Action]) -> list[Action]:
    """Count the forwards from 0: torch 2.13 shows those of 1F1B's last stage from 1."""
    microbatches = iter(range(len(order)))
    return [Action("F", next(microbatches)) if each.kind == "F" else each for each in order]


def _bare(name: str, chain: Chain, num_microbatches: int) -> Any:
    schedule = CLASSES[name].__new__(CLASSES[name])
    single = name in ("gpipe", "1f1b")
    schedule._num_stages = chain.num_stages if single else chain.num_parts
    schedule._n_microbatches = num_microbatches
    schedule.num_stages = chain.num_parts
    schedule.pp_group_size = chain.num_stages
    schedule.n_local_stages = chain.num_chunks
    schedule.number_of_rounds = max(1, num_microbatches // chain.num_stages)
    schedule.microbatches_per_round = num_microbatches // schedule.number_of_rounds
    return schedule


def _convert(name: str, chain: Chain, actions: list[Any]) -> list[Action]:
    splits = name in ("zb_h1", "zb_v", "dualpipev")
    result: list[Action] = []
    for action in actions:
        if action is None:
            continue
        if action.sub_actions:
            result += _convert(name, chain, list(action.sub_actions))
            continue
        kind = action.computation_type.name
        if kind not in KINDS:
            continue
        kinds = KINDS[kind].split() if splits else KINDS[kind][:1]
        _, chunk = chain.home(action.stage_index)
        result += [Action(each, action.microbatch_index, chunk) for each in kinds]
    return result
