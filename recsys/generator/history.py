"""How a model with one position an item reads a history; what it emits is its subclasses' business.

Shapes: B sequences, T items (right-padded), D width, L codes an item.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.data.sequences import IntArray
from recsys.generator.body import Body
from recsys.generator.config import ModelConfig
from recsys.generator.lm.backbone import Backbone
from recsys.generator.lm.instruction import Instruction
from recsys.generator.lm.user_rows import UserRows
from recsys.generator.tree_decoding import Prefix, read, read_on, rows_from


class HistoryModel(nn.Module):
    """A causal transformer whose inputs are items: code embeddings, item residual and projected vector, summed.

    Args:
        config: size of the model.
        codes: int64 [N, L], the items' semantic IDs.
        codebook_sizes: number of codes on each level.
        item_vectors: float32 [N, V] that describe the items' content, or None.
        backbone: the language model to go on from; None = a body from scratch.
        users: rows for users' codes, which then stand before a history; only with `backbone`.
    """

    def __init__(
        self,
        config: ModelConfig,
        codes: npt.NDArray[np.int64],
        codebook_sizes: Sequence[int],
        item_vectors: npt.NDArray[np.float32] | None,
        backbone: Backbone | None = None,
        users: UserRows | None = None,
    ) -> None:
        super().__init__()
        # Shared with copies that have another head or body, whose weights are the same ones: emptied, never replaced.
        self._frozen_means: dict[int, Tensor] = {}
        self.stored_means: dict[int, Tensor] = {}
        """By level, what `mean_residuals` would compute of the weights as they are: maps of a file, if there is one."""
        self.config = config
        self.body = Body(config, max_positions=config.max_history + 1) if backbone is None else backbone
        self.width = width = self.body.hidden_size
        self.instruction = Instruction(backbone)
        self.users = users
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)
        self.codes: Tensor
        self.register_buffer("further_codes", None, persistent=False)
        self.further_codes: Tensor | None
        """int64 [K, L]: of items that `with_items` has put behind those of `codes`."""
        self.begin = nn.Parameter(torch.zeros(width)) if backbone is None else None
        self.code_embeddings = nn.ModuleList(nn.Embedding(size, width) for size in codebook_sizes)
        self.item_residuals = nn.Embedding(len(codes), width) if config.item_residuals else None
        # Items that join after the fit have no residual, and do not water down the means that they are part of.
        self.register_buffer("learned", torch.ones(len(codes), dtype=torch.bool))
        self.learned: Tensor
        self.vector_projection: nn.Linear | None = None
        if config.text_input and item_vectors is not None:
            self.register_buffer("item_vectors", torch.from_numpy(item_vectors), persistent=False)
            self.item_vectors: Tensor
            self.vector_projection = nn.Linear(item_vectors.shape[1], width)
        self.register_buffer("further_vectors", None, persistent=False)
        self.further_vectors: Tensor | None
        """float32 [K, V]: of items that `with_items` has put behind those of `item_vectors`."""

    def initialise_embeddings(self) -> None:
        """Small random embeddings, zero residuals; call it once all modules are there."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) and not name.startswith(("body.", "users.")):
                nn.init.normal_(module.weight, std=0.02)
        if self.item_residuals is not None:
            # From zero: what an item has beyond its codes and its vector must be earned by interactions.
            nn.init.zeros_(self.item_residuals.weight)

    def embed_items(self, items: Tensor) -> Tensor:
        """float32 [..., D]: the input of each item."""
        codes = self.codes_of(items)
        embedded: Tensor = sum(table(codes[..., level]) for level, table in enumerate(self.code_embeddings))
        if self.item_residuals is not None:
            embedded = embedded + self._residuals(self.item_residuals, items)
        if self.vector_projection is not None:
            embedded = embedded + self.vector_projection(self._vectors(items))
        return embedded

    def _residuals(self, table: nn.Embedding, items: Tensor) -> Tensor:
        if self.further_codes is None:
            return cast(Tensor, table(items))
        is_further = items >= table.num_embeddings
        return cast(Tensor, table(items.masked_fill(is_further, 0))).masked_fill(is_further.unsqueeze(-1), 0)

    def codes_of(self, items: Tensor) -> Tensor:
        """int64 [..., L]: the semantic IDs of items, int64 [...]."""
        return block_rows(self.codes, self.further_codes, items)

    def _vectors(self, items: Tensor) -> Tensor:
        return block_rows(self.item_vectors, self.further_vectors, items)

    def _grown(self, further_codes: IntArray, further_vectors: npt.NDArray[np.float32] | None) -> Self:
        """A copy that reads these items, int64 [K, L], behind its own; see `NestedModel.with_items`.

        Nothing that has a row an item is copied: residuals of further items are zero, and not in the table.
        """
        twin, device = copy.copy(self), self.codes.device
        # A shallow copy shares the very table of the buffers.
        twin._buffers = dict(self._buffers)
        twin.further_codes = joined(self.further_codes, torch.from_numpy(further_codes).to(device))
        twin.learned = nn.functional.pad(self.learned, (0, len(further_codes)))
        if self.vector_projection is not None and further_vectors is not None:
            twin.further_vectors = joined(self.further_vectors, torch.from_numpy(further_vectors).to(device))
        return twin

    def mean_residuals(self, level: int, owners: Tensor, count: int) -> Tensor:
        """float32 [count, D]: the mean residual of the learned items of each owner on `level`, or 0.

        Kept from call to call in evaluation mode, for searches.

        Args:
            level: under which it is kept.
            owners: int64 [N], the node or code of each item on that level.
            count: how many there are.
        """
        assert self.item_residuals is not None, "callers have asked"
        frozen = not self.training and not torch.is_grad_enabled()
        if torch.is_grad_enabled():
            # Gradients announce a step, in evaluation mode too; what was computed before it must not outlive it.
            self._frozen_means.clear()
            self.stored_means.clear()
        if frozen:
            kept = self._frozen_means.get(level, self.stored_means.get(level))
            # A file is read into the memory of the CPU.
            if kept is not None and kept.device == self.item_residuals.weight.device:
                return kept
        table = self.item_residuals.weight
        learned = self.learned[: len(table)].to(table)
        counts = torch.zeros(count, 1, device=table.device).index_add(0, owners, learned.unsqueeze(1))
        sums = torch.zeros(count, table.shape[1], device=table.device).index_add(0, owners, table)
        means = sums / counts.clamp(min=1)
        if frozen:
            self._frozen_means[level] = means
        return means

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, and forget what was computed from the weights as they were.

        Weights change between a call of `train()` and the next of `eval()`. Their version counters cannot tell: fused
        optimizers do not raise them.
        """
        self._frozen_means.clear()
        if mode:
            self.stored_means.clear()
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `torch.nn.Module.load_state_dict`; forgets what was computed from the earlier weights."""
        self._frozen_means.clear()
        self.stored_means.clear()
        return super().load_state_dict(*args, **kwargs)

    def hidden_states(self, items: Tensor, known: Tensor | None = None) -> Tensor:
        """float32 [B, T + 1, D]: entry t summarises the first t items; entry 0 is the empty history.

        With `known` (int64 [B]), so many of the first items make up the user whose codes are read first, where the
        model has rows of users; without, they are of nobody in particular.
        """
        inputs, before = self._open(items, known)
        return rows_from(cast(Tensor, self.body(inputs)), before - 1, items.shape[1] + 1)

    def _beginning(self) -> Tensor:
        """float32 [P, D]: what stands before the first item."""
        return self.instruction.rows() if self.begin is None else self.begin.unsqueeze(0)

    def _open(self, items: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | int]:
        """Input rows of items (int64 [B, T]), and how many stand before them; `known` of them are the user's."""
        beginning, rows = self._beginning(), self.embed_items(items)
        if self.users is not None and known is not None:
            return self.users.open(beginning, items, known, rows)
        return torch.cat([beginning.expand(len(items), -1, -1), rows], dim=1), len(beginning)

    @property
    def rows_per_item(self) -> int:
        """Rows of an item in a sequence."""
        return 1

    def item_rows(self, items: Tensor) -> Tensor:
        """Float32 [..., 1, D]: the input row of each item (int64 [...])."""
        return self.embed_items(items).unsqueeze(-2)

    def encode(self, items: Tensor, lengths: Tensor) -> Prefix:
        """Read histories (int64 [B, T], right-padded) of `lengths` (int64 [B]): see `sessions.SessionModel`."""
        inputs, before = self._open(items, lengths)
        return read(self.body, inputs, before + lengths)

    def extend(self, prefix: Prefix, items: Tensor) -> Prefix:
        """Read `items` (int64 [B, E]) after what was read: see `sessions.SessionModel`."""
        return read_on(self.body, prefix, self.embed_items(items))

    def goes_on(self, known: IntArray, history: IntArray) -> bool:
        """Whether what was read of `known` is the beginning of `history`: see `sessions.SessionModel`."""
        return self.users is None or self.users.of(known) == self.users.of(history)

    def state(self, prefix: Prefix) -> Tensor:
        """State [B, 1, D] of the decoder, which needs nothing but what the histories came to."""
        return prefix.hidden.unsqueeze(1)

    def start(self, items: Tensor, lengths: Tensor) -> Tensor:
        """State [B, 1, D] of the decoder: see `SidModel`."""
        return self.state(self.encode(items, lengths))


def block_rows(first: Tensor, further: Tensor | None, items: Tensor) -> Tensor:
    """[..., D]: the rows of `items`, int64 [...], in two blocks [N, D] and [K, D]; there may be but the first."""
    if further is None or not len(further):
        return first[items]
    is_further = items >= len(first)
    late = further[(items - len(first)).clamp(min=0)]
    return torch.where(is_further.unsqueeze(-1), late, first[items.masked_fill(is_further, 0)])


def joined(block: Tensor | None, further: Tensor) -> Tensor:
    """[K + J, D]: rows behind those that there were, if there were any."""
    return further if block is None else torch.cat([block, further])
