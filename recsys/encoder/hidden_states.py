"""Text vectors out of a causal language model: its last hidden states, pooled. Knows no catalogue and no training.

The way LC-Rec (arXiv 2311.09049) makes item embeddings from LLaMA. Texts are padded on the right by this module,
whatever the tokenizer is set to: a causal model's states then depend neither on the padding nor on the rest of the
batch, and positions start at 0 for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.errors import AssetError, DataError

FloatArray = npt.NDArray[np.float32]


class HiddenStateModel:
    """A causal language model of the transformers library, read from safetensors in float32.

    Raises:
        AssetError: there is no such model, or it has no safetensors or no tokenizer.
        DataError: it reads in both directions, so that its last token is no summary and padding would not be neutral.
    """

    def __init__(self, source: str, pooling: Literal["mean", "last"], max_tokens: int) -> None:
        # Imported here: it takes seconds, and a run whose texts are all cached does without.
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._pooling = pooling
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            # With its language head, which is dropped: the class for the bare model would load any kind of model.
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise AssetError(
                f"encoder.model {source!r} with encoder.pooling {pooling!r} must be a causal language model (a "
                f"directory or a name of the Hub) with safetensors and a tokenizer: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        body = model.base_model
        if _reads_ahead(body):
            raise DataError(
                f"encoder.model {source!r} reads texts in both directions, it is no causal language model; set "
                "encoder.pooling to model"
            )
        self._model: Any = body.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
        limit = getattr(body.config, "max_position_embeddings", None)
        self._max_tokens = min(max_tokens, limit) if limit else max_tokens

    def encode(self, texts: Sequence[str], batch_size: int) -> FloatArray:
        """float32 [n, hidden], in the order of `texts`; an empty text is read as its begin-of-text token alone."""
        encoded = [self._tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda row: -len(encoded[row]))
        vectors = np.empty((len(texts), int(self._model.config.hidden_size)), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self._forward([encoded[row] for row in rows])
        return vectors

    def save(self, directory: str) -> None:
        """Write weights and tokenizer, for a fingerprint."""
        self._model.save_pretrained(directory)
        self._tokenizer.save_pretrained(directory)

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
        if tokens:
            return tokens
        ends = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        known = [token for token in ends if token is not None]
        if not known:
            raise DataError(
                "an item has no text, and the language model's tokenizer has neither a begin nor an end token to stand "
                "for it; give encoder.template a column that every item has"
            )
        return known[:1]

    @torch.no_grad()
    def _forward(self, encoded: Sequence[Sequence[int]]) -> FloatArray:
        width = max(map(len, encoded))
        # Any token may stand in the padding: states before it do not see it.
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in encoded])
        attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded])
        device = self._model.device
        output = self._model(input_ids=tokens.to(device), attention_mask=attention.to(device), use_cache=False)
        return pool(output.last_hidden_state.float().cpu(), attention, self._pooling).numpy()


def pool(states: Tensor, attention: Tensor, pooling: Literal["mean", "last"]) -> Tensor:
    """float [B, H]: the mean or the last of the states of each row's tokens, wherever the padding is.

    Args:
        states: float [B, S, H].
        attention: int [B, S], 1 for tokens and 0 for padding, at least one token a row.
        pooling: `mean`, or `last` = the last token that is no padding.
    """
    if pooling == "last":
        places = torch.arange(attention.shape[1]) * attention
        return states[torch.arange(len(states)), places.argmax(dim=1)]
    # Not a product with the mask: a padded state may hold anything, and 0 times infinity is no number.
    kept = states.masked_fill(attention[:, :, None] == 0, 0.0)
    return kept.sum(dim=1) / attention.sum(dim=1, keepdim=True)


@torch.no_grad()
def _reads_ahead(body: Any) -> bool:
    """Whether a token's state depends on the token after it."""
    one, two = (body(input_ids=torch.tensor([[1, 2, last]])).last_hidden_state for last in (3, 4))
    return bool((one[:, :2] - two[:, :2]).abs().max() > 1e-4)
