"""A model of integer logits, so that scores tie exactly; they depend on a token's level and code alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys.generator.set_walk import TokenChildren


class TableModel:
    """Args: tables: for each level the logits of its codes. Works over both kinds of trie; has no state."""

    def __init__(self, tables: Sequence[Sequence[float]]) -> None:
        width = max(len(table) for table in tables)
        self.tables = torch.tensor([[*table, *[0.0] * (width - len(table))] for table in tables])

    def start(self, items: Tensor, lengths: Tensor) -> None:
        return None

    def child_logits(self, state: Any, level: int, children: Any) -> Tensor:
        if isinstance(children, TokenChildren):
            return self.tables[children.codebooks]
        return self.tables[level][children.codes]

    def advance(self, state: Any, level: int, beams: Tensor, codes: Tensor) -> None:
        return None
