"""The tokens of users in a language model: rows of their own beside words and items, and where they stand in a prompt.

A user's codes stand at the head of a sequence, before the instruction and the history that they were made of (ULMRec,
arXiv 2412.05543, whose released code adds no tokens: it has its indices split into pieces of words). They are only
read: no head emits them. A history without items has none.

Shapes: B sequences, T items (right-padded), L codes a user, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.sequences import IntArray, Sequences
from recsys.generator.lm.backbone import Backbone
from recsys.generator.lm.examples import Piece, UserTokens, for_user
from recsys.tokenizer.user_histories import HistoryIndexer


class UserRows(nn.Module):
    """Rows for the codes of users, and the words between a user and the user's history.

    Args:
        indexer: gives histories their users' codes.
        backbone: the language model that reads them.
    """

    def __init__(self, indexer: HistoryIndexer, backbone: Backbone) -> None:
        super().__init__()
        self.indexer = indexer
        # In a list, as the language model is registered where it belongs.
        self._backbone = [backbone]
        sizes = indexer.codebook_sizes
        self.offsets: IntArray = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64)
        self.embedding = nn.Embedding(sum(sizes), backbone.hidden_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.register_buffer("words", torch.zeros(0, dtype=torch.int64))
        self.words: Tensor
        self.instruct(backbone.templates.next_item_instruction)

    def instruct(self, instruction: str) -> None:
        """Ask for the next item in these words."""
        _, words = for_user((instruction,), UserTokens(()))
        assert isinstance(words, str), "text follows the user"
        tokens = self._backbone[0].text_tokens(words)
        self.words = torch.tensor(tokens, dtype=torch.int64, device=self.words.device)

    @property
    def num_rows(self) -> int:
        """Rows before a history whose user has codes."""
        return len(self.offsets) + len(self.words)

    def numbers(self, codes: Sequence[int]) -> IntArray:
        """int64 [L]: the rows of one user's codes."""
        return np.asarray(codes, dtype=np.int64) + self.offsets

    def of(self, history: Sequence[int] | IntArray) -> UserTokens | None:
        """The user of a history; None where it has no item."""
        codes = self.indexer.encode(Sequences.from_lists([history]))[0]
        return None if codes[0] < 0 else UserTokens(tuple(codes.tolist()))

    def head(self, prompt: tuple[Piece, ...], history: Sequence[int] | IntArray) -> tuple[Piece, ...]:
        """The prompt about the user of `history` with that user's codes at its head, where there are any."""
        user = self.of(history)
        return prompt if user is None else for_user(prompt, user)

    def open(self, instruction: Tensor, items: Tensor, lengths: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Input rows float32 [B, S, D] of whole sequences, and int64 [B]: how many rows stand before the items.

        Args:
            instruction: float32 [P, D], what stands before a sequence without a user.
            items: int64 [B, T], right-padded.
            lengths: int64 [B]: the items that are known of the user, whom they make up; none, no user.
            item_rows: float32 [B, R, D]: the rows of `items`.
        """
        known = Sequences.from_lists(
            [row[:length] for row, length in zip(items.cpu().numpy(), lengths.tolist(), strict=True)]
        )
        codes = self.indexer.encode(known)
        named = torch.from_numpy(codes[:, 0] >= 0).to(items.device)
        numbers = torch.from_numpy(codes.clip(min=0) + self.offsets).to(items.device)
        words = self._backbone[0].text_embeddings(self.words).expand(len(items), -1, -1)
        with_user = torch.cat([self.embedding(numbers).to(item_rows), words.to(item_rows), item_rows], dim=1)
        alone = torch.cat([instruction.to(item_rows).expand(len(items), -1, -1), item_rows], dim=1)
        width = max(with_user.shape[1], alone.shape[1])
        with_user, alone = (nn.functional.pad(rows, (0, 0, 0, width - rows.shape[1])) for rows in (with_user, alone))
        before = torch.where(named, self.num_rows, len(instruction))
        return torch.where(named[:, None, None], with_user, alone), before
