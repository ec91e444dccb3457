"""Builds what one rank trains with: groups, stage, engine, links and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.config.schema import Run
from launcher.plan.mesh import build_mesh
from launcher.plan.records import Layout
from launcher.plan.schedule_records import Schedule, has_weight_actions
from launcher.runtime.data import Datasets, open_datasets
from launcher.runtime.engine import Engine, adds_up_in_products, build_engine
from launcher.runtime.frozen import Frozen
from launcher.runtime.groups import Groups, build_groups
from launcher.runtime.model.stage import DTYPES, build_stage
from launcher.runtime.pipeline.p2p import Channels, boundary_shape, build_channels
from launcher.runtime.process import Place


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Everything that a step needs on one rank."""

    frozen: Frozen
    groups: Groups
    engine: Engine
    channels: Channels
    data: Datasets

    @property
    def stage(self) -> int:
        """Index of this rank's pipeline stage."""
        return self.groups.pp.index


def build_trainer(frozen: Frozen, device: torch.device, data_folder: Path, place: Place) -> Trainer:
    """Every rank must call it; weights are initial."""
    run, layout = frozen.run, frozen.layout
    # 1. Data first: it fails fastest.
    data = open_datasets(run, layout, data_folder, place.local_rank == 0, _barrier)
    # 2. Who talks to whom.
    groups = build_groups(
        layout, build_mesh(layout), device, run.model.tie_embeddings, run.model.kv_heads
    )
    # 3. This rank's share of the model, and who updates it.
    schedule = frozen.schedule
    module = build_stage(
        run, layout, frozen.stages[groups.pp.index], groups, has_queue(run, layout, schedule)
    )
    engine = build_engine(module, run, layout, groups, frozen.ds_config)
    # 4. Links to the neighbouring stages.
    shape = boundary_shape(layout, run.model)
    dtype = DTYPES[run.precision.compute]
    channels = build_channels(groups, shape, dtype, schedule.chain, layout.overlap_p2p)
    return Trainer(frozen=frozen, groups=groups, engine=engine, channels=channels, data=data)


def has_queue(run: Run, layout: Layout, schedule: Schedule) -> bool:
    """Whether products with a weight leave its gradient to the stage's `WeightQueue`."""
    return has_weight_actions(schedule.ranks) or adds_up_in_products(run, layout)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
