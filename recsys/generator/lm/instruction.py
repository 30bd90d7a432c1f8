"""The words that stand before a history when a language model reads one. Knows no wording of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.generator.lm.backbone import Backbone


class Instruction(nn.Module):
    """The canonical request for the next item as input rows; nothing without a language model.

    Saved as token numbers: a served model is asked in the words that it was taught with.
    """

    def __init__(self, backbone: Backbone | None) -> None:
        super().__init__()
        # In a list, as the language model is registered where it belongs.
        self._backbone = [backbone] if backbone is not None else []
        tokens = [] if backbone is None else backbone.text_tokens(backbone.templates.next_item_instruction)
        self.register_buffer("tokens", torch.tensor(tokens, dtype=torch.int64), persistent=backbone is not None)
        self.tokens: Tensor

    @property
    def is_given(self) -> bool:
        """Whether there is a language model to be instructed."""
        return len(self._backbone) > 0

    def set(self, tokens: list[int]) -> None:
        """Ask in other words."""
        self.tokens = torch.tensor(tokens, dtype=torch.int64, device=self.tokens.device)

    def rows(self) -> Tensor:
        """float32 [P, D]."""
        rows: Tensor = self._backbone[0].text_embeddings(self.tokens)
        return rows
