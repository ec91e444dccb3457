"""What one rank computes: the blocks of its pipeline stage, the embedding or the head with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from launcher.config.schema import Model, Run
from launcher.plan.costs import ParameterSpec, parameter_table
from launcher.plan.records import Layout, Stage
from launcher.runtime.gradients import mark_partial_gradients
from launcher.runtime.groups import Groups
from launcher.runtime.model.attention import AttentionTables, Packed, pack_documents
from launcher.runtime.model.context import ForwardContext
from launcher.runtime.model.dropout import Dropout, drop
from launcher.runtime.model.initial import materialise
from launcher.runtime.model.layers import Block, Embedding, Head, build_norm
from launcher.runtime.parallel.apply import apply_compile, apply_recompute
from launcher.runtime.parallel.context import apply_context_parallel
from launcher.runtime.parallel.sequence_cut import SequenceCut, cut_sequence
from launcher.runtime.parallel.split_backward import WeightQueue, split_backward
from launcher.runtime.parallel.tensor import apply_tensor_parallel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Storage of parameters and activations by `precision.compute`."""


def build_stage(
    run: Run, layout: Layout, stage: Stage, groups: Groups, has_queue: bool = False
) -> StageModule:
    """The module of one rank, with its initial weights, on the rank's device.

    has_queue: products with a weight leave its gradient to `module.weight_queue`.
    Under FSDP2 the weights stay on the meta device until the engine calls `module.fill`.
    """
    model, dtype = run.model, DTYPES[run.precision.compute]
    # 1. Plain modules on the meta device: names and full shapes, no memory.
    mode, length = run.parallelism.cp_mode, layout.sequence_length
    cut = cut_sequence(mode, groups.cp, length, groups.device)
    tables = AttentionTables(model, length, groups.device, dtype, cut)
    module = StageModule(model, stage, tables, dtype, cut)
    # 2. Tensor and context parallelism change how they compute.
    specs = _specs_by_local_name(model)
    apply_tensor_parallel(
        module, specs, groups,
        sequence_parallel=layout.sequence_parallel, overlaps=layout.overlap_tp,
    )  # fmt: skip
    apply_context_parallel(module, mode, cut, model.sliding_window)
    # 3. Every parameter becomes real, one at a time, only this rank's shard.
    module.fill = partial(_fill, module, specs, run, layout, groups)
    if layout.engine != "fsdp2":
        module.fill("")
    # 4. What does not change the numbers.
    module.dropout = _build_dropout(run, layout, groups, cut)
    apply_recompute(module, layout.recompute)
    if has_queue:
        module.weight_queue = split_backward(module)
    if run.train.compile:
        apply_compile(module)
    return module


def tied_parameter(module: nn.Module) -> nn.Parameter | None:
    """The stage's copy of a token table that another stage holds too; None where there is none.

    The first stage owns it, the last has a copy with the same initial values; their gradients
    must be summed (over `groups.embedding`) before every optimizer step.
    """
    assert isinstance(module, StageModule)
    if not module.is_tied or module.is_first == module.is_last:
        return None
    weight = module.embedding.tokens.weight if module.is_first else module.head.weight
    assert isinstance(weight, nn.Parameter)
    return weight


class StageModule(nn.Module):
    """Consecutive blocks; local parameter names equal the full logical names, tied copy aside."""

    def __init__(
        self,
        model: Model,
        stage: Stage,
        tables: AttentionTables,
        dtype: torch.dtype,
        cut: SequenceCut | None = None,
    ) -> None:
        super().__init__()
        self.cut = cut
        """Which part of every sequence is here; None: all of it."""
        self.is_first, self.is_last, self.is_tied = (
            stage.is_first, stage.is_last, model.tie_embeddings,
        )  # fmt: skip
        self.pieces = stage.pieces
        self.sliding_window, self.dtype = model.sliding_window, dtype
        self.weight_queue: WeightQueue | None = None
        """Where weight gradients wait, or are added up; None: that is left to autograd."""
        self.fill: Callable[[str], None]
        """Makes the parameters below a path (with a dot at its end) real, with initial values."""
        self.dropout: Dropout | None = None
        """None: the model has no dropout anywhere."""
        if self.is_first:
            self.embedding = Embedding(model, dtype)
        self.layers = nn.ModuleDict(
            {
                str(layer): Block(model, tables, dtype)
                for piece in self.pieces
                for layer in range(piece.first_layer, piece.end_layer)
            }
        )
        if self.is_last:
            self.final_norm = build_norm(model, dtype)
            self.head = Head(model, dtype)
        if self.is_first and self.is_last and self.is_tied:
            self.head.register_parameter("weight", self.embedding.tokens.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """tokens_BS or hidden_BSH in; hidden_BSH out, at the model's end the mean loss instead.

        Tokens and labels are those of whole sequences; hidden states and the loss are of the part
        that is here.
        """
        piece = self.pieces[context.chunk]
        packed = self.pack(context)
        if self.cut is not None:
            context = self.cut.narrow(context)
            x = self.cut.take(x) if piece.is_first else x
        if piece.is_first:
            x = self._embed(x, context, packed)
        for layer in map(str, range(piece.first_layer, piece.end_layer)):
            x = self.run_block(self.layers[layer], x, layer, context, packed)
        if not piece.is_last:
            return x
        assert context.labels_BS is not None, "the last stage needs labels"
        return self.head(self.final_norm(x), context.labels_BS, context.num_labels)  # type: ignore[no-any-return]

    def pack(self, context: ForwardContext) -> Packed | None:
        """What keeps the documents of a microbatch apart, made once for all of its blocks."""
        if context.documents_BS is None:
            return None
        return pack_documents(context.documents_BS, self.sliding_window, self.dtype, self.cut)

    def run_block(
        self,
        block: nn.Module,
        x: Tensor,
        layer: str,
        context: ForwardContext,
        packed: Packed | None,
    ) -> Tensor:
        """One block with its masks; masks are drawn here, outside of what is compiled."""
        masks = None
        if self.dropout is not None and self.training:
            masks = self.dropout.block_masks(x, context, layer)
        return block(x, masks, packed)  # type: ignore[no-any-return]

    def _embed(self, tokens_BS: Tensor, context: ForwardContext, packed: Packed | None) -> Tensor:
        positions = None if self.cut is None else self.cut.places_s.unsqueeze(0)
        hidden_BSH = self.embedding(tokens_BS, positions if packed is None else packed.positions_BS)
        if self.dropout is None or not self.training:
            return hidden_BSH  # type: ignore[no-any-return]
        mask_BSH = self.dropout.embedding_mask(hidden_BSH, context)
        return drop(hidden_BSH, mask_BSH, self.dropout.rate)


def _specs_by_local_name(model: Model) -> dict[str, ParameterSpec]:
    """The parameter table; a tied head is found under its own name, too."""
    specs = {spec.name: spec for spec in parameter_table(model)}
    if model.tie_embeddings:
        specs["head.weight"] = specs["embedding.tokens.weight"]
    return specs


def _fill(
    module: StageModule,
    specs: dict[str, ParameterSpec],
    run: Run,
    layout: Layout,
    groups: Groups,
    below: str,
) -> None:
    materialise(module, specs, run.model, run.train.seed, groups.tp, groups.device, below)
    _mark_tied_copy(module)
    if layout.sequence_parallel:
        mark_partial_gradients(p for p in module.parameters() if hasattr(p, "shard"))


def _mark_tied_copy(module: StageModule) -> None:
    """The last stage's copy of a tied table belongs to the first stage."""
    if not module.is_first and tied_parameter(module) is not None:
        weight = module.head.weight
        if not hasattr(weight, "shard"):
            return  # not filled yet, or cut already
        weight.ds_pipe_replicated = True  # type: ignore[attr-defined]
        weight.shard = replace(weight.shard, owner=False)  # type: ignore[attr-defined]


def _build_dropout(
    run: Run, layout: Layout, groups: Groups, cut: SequenceCut | None
) -> Dropout | None:
    model = run.model
    if model.dropout == 0 and model.attention_dropout == 0:
        return None
    return Dropout(
        seed=run.train.seed,
        rate=model.dropout,
        attention_rate=model.attention_dropout,
        core_index=groups.cp.index * groups.tp.size + groups.tp.index,
        places_S=_places(layout, groups, cut),
        length=layout.sequence_length,
    )


def _places(layout: Layout, groups: Groups, cut: SequenceCut | None) -> Tensor | None:
    """Where the tokens stand between whose cut products dropout lies; None: all are here."""
    if cut is None and not layout.sequence_parallel:
        return None
    places = torch.arange(layout.sequence_length) if cut is None else cut.places_s
    if layout.sequence_parallel:
        places = places.chunk(groups.tp.size)[groups.tp.index]
    return places.to(groups.device)
