"""A language model as the frozen recommender: it ranks candidates by how likely their titles are to come next.

No model is trained for it, and it knows no semantic IDs. A title counts with its mean log-probability a token: with the
sum, which words a title happens to have outweighs what is said about the user.

One user's texts share the recent items, all candidates share the text: they are read once, and all titles are scored in
one pass over one cache.

Shapes: P profiles, T targets, C candidates a target, S rows of a prompt, Q rows of all titles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recsys.generator import caches
from recsys.generator.lm.backbone import Backbone
from recsys.generator.tree_decoding import Prefix, read, read_on
from recsys.profile.cases import Case
from recsys.profile.utility import FloatArray


class TitleJudge:
    """Softmax over a target's candidates of what their titles count.

    Args:
        backbone: a language model, frozen; its `precision` is that of all matrix products here.
        titles: by dense index.
    """

    def __init__(self, backbone: Backbone, titles: Sequence[str]) -> None:
        self._backbone = backbone.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
        self._titles = titles

    def count_tokens(self, text: str) -> int:
        """See `Judge.count_tokens`."""
        return len(self._backbone.text_tokens(text))

    @torch.inference_mode()
    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        """See `Judge.log_probs`; the C probabilities of a target's candidates sum to 1."""
        with self._backbone.mixed_precision(self._device):
            return self._log_probs_of(case, texts)

    def _log_probs_of(self, case: Case, texts: Sequence[str]) -> FloatArray:
        items, place = np.unique(case.candidates, return_inverse=True)
        recent = self._read("Chosen lately:\n" + "".join(f"- {self._titles[item]}\n" for item in case.recent))
        scores = np.empty((len(texts), *case.candidates.shape))
        for row, text in enumerate(texts):
            about = f"About this person: {text}\n" if text else ""
            means = self._title_scores(self._read_on(recent, f"{about}Chosen next:\n-"), items.tolist())
            scores[row] = means[place.reshape(-1)].reshape(case.candidates.shape)
        return np.asarray(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))

    def _read(self, text: str) -> Prefix:
        rows = self._rows(text)
        return read(self._backbone, rows, torch.tensor([rows.shape[1]], device=rows.device))

    def _read_on(self, prefix: Prefix, text: str) -> Prefix:
        return read_on(self._backbone, prefix, self._rows(text))

    def _rows(self, text: str) -> Tensor:
        """float32 [1, S, D]."""
        tokens = torch.tensor([self._backbone.text_tokens(text)], device=self._device)
        rows: Tensor = self._backbone.text_embeddings(tokens)
        return rows

    def _title_scores(self, prefix: Prefix, items: Sequence[int]) -> FloatArray:
        """float64 [len(items)]: mean log-probability of the tokens of each title and a line break after `prefix`."""
        written = [self._backbone.text_tokens(f" {self._titles[item]}\n") for item in items]
        lengths = torch.tensor([len(tokens) for tokens in written], device=self._device)
        # Each title sees the prefix and itself up to its row. Its last token is only predicted.
        owner = torch.repeat_interleave(torch.arange(len(items), device=self._device), lengths - 1)
        place = torch.cat([torch.arange(len(tokens) - 1, device=self._device) for tokens in written])
        same = (owner.unsqueeze(1) == owner.unsqueeze(0)) & (place.unsqueeze(1) >= place.unsqueeze(0))
        size = int(prefix.lengths[0])
        visible = torch.cat([same.new_ones(len(owner), size), same], dim=1)
        inputs = torch.tensor([token for tokens in written for token in tokens[:-1]], device=self._device)
        forked = caches.fork(prefix.cache)
        hidden = self._backbone.extend(
            self._backbone.text_embeddings(inputs).unsqueeze(0),
            forked,
            positions=(size + place).unsqueeze(0),
            visible=visible.unsqueeze(0),
        )[0]
        first = torch.tensor([tokens[0] for tokens in written], device=self._device)
        begin = self._log_probs(prefix.hidden, first[None])[0]
        follow = torch.tensor([token for tokens in written for token in tokens[1:]], device=self._device)
        later = self._log_probs(hidden, follow.unsqueeze(1)).squeeze(1)
        total = begin.double().index_add(0, owner, later.double())
        return np.asarray((total / lengths).cpu().numpy())

    def _log_probs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """float32 [R, K]: log-probabilities of tokens int64 [R, K] after hidden states [R, D]."""
        logits = self._backbone.text_logits(hidden)
        return logits.gather(1, tokens.expand(len(hidden), -1)) - logits.logsumexp(-1, keepdim=True)

    @property
    def _device(self) -> torch.device:
        return self._backbone.text_embeddings.weight.device
