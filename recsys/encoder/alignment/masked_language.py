"""Masked language modelling with the encoder's own layers, so that tuning on profiles keeps its words. Knows no items.

EasyRec (arXiv 2408.08821) adds it to the contrastive loss with weight 0.1. 15 % of the tokens are to be guessed; of
these 80 % are replaced by the mask, 10 % by a random token, and 10 % stay (BERT, arXiv 1810.04805, section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.errors import ConfigError

_MASKED_SHARE, _MASK_TOKEN_SHARE, _RANDOM_TOKEN_SHARE = 0.15, 0.8, 0.1
_IGNORED = -100


def mask_tokens(tokens: Tensor, maskable: Tensor, mask_token: int, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """Hide tokens by torch's global generator.

    Args:
        tokens: int64 [B, S].
        maskable: bool [B, S], false for padding and special tokens.
        mask_token: the id that stands for a hidden token.
        vocabulary_size: random tokens are below it.

    Returns:
        int64 [B, S] tokens with some replaced, and int64 [B, S] labels: the token where it is to be guessed, else -100.
    """
    chosen = (torch.rand(tokens.shape) < _MASKED_SHARE).to(tokens.device) & maskable
    fate = torch.rand(tokens.shape).to(tokens.device)
    random_tokens = torch.randint(vocabulary_size, tokens.shape).to(tokens.device)
    hidden = torch.where(chosen & (fate < _MASK_TOKEN_SHARE), mask_token, tokens)
    replaced = chosen & (fate >= _MASK_TOKEN_SHARE) & (fate < _MASK_TOKEN_SHARE + _RANDOM_TOKEN_SHARE)
    hidden = torch.where(replaced, random_tokens, hidden)
    return hidden, torch.where(chosen, tokens, _IGNORED)


class MaskedLanguageModel(nn.Module):
    """A new language head on a backbone that it shares with the encoder; the output matrix is the word embedding.

    Raises:
        ConfigError: the backbone's family has no masked language model, or its tokenizer has no mask token.
    """

    def __init__(self, backbone: Any, tokenizer: Any) -> None:
        super().__init__()
        # Imported here: it takes seconds, and most runs tune a head alone.
        from transformers import AutoModelForMaskedLM

        if tokenizer.mask_token_id is None:
            raise ConfigError(
                "encoder.alignment.mlm_weight is above 0, but the tokenizer has no mask token; set it to 0"
            )
        try:
            model = AutoModelForMaskedLM.from_config(backbone.config)
        except ValueError as error:
            raise ConfigError(
                f"encoder.alignment.mlm_weight is above 0, but {backbone.config.model_type} has no masked language "
                "model; set it to 0"
            ) from error
        setattr(model, model.base_model_prefix, backbone)
        model.tie_weights()
        self.model = model.to(backbone.device)
        self._tokenizer = tokenizer

    def new_parameters(self) -> list[nn.Parameter]:
        """The head's own weights, which the encoder does not have."""
        shared = {id(parameter) for parameter in self.model.base_model.parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in shared]

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Scalar cross-entropy of the hidden tokens of `input_ids` and `attention_mask`, int64 [B, S]; 0 if none is."""
        tokens, attention = features["input_ids"], features["attention_mask"]
        special = torch.tensor(self._tokenizer.all_special_ids, device=tokens.device)
        maskable = attention.bool() & ~torch.isin(tokens, special)
        hidden, labels = mask_tokens(tokens, maskable, self._tokenizer.mask_token_id, self.model.config.vocab_size)
        logits: Tensor = self.model(input_ids=hidden, attention_mask=attention).logits
        if not (labels != _IGNORED).any():
            return logits.sum() * 0.0
        return functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=_IGNORED)
