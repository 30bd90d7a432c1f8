"""The flat model as its user would assemble it from transformers alone, with the same weights.

A `LlamaForCausalLM` over semantic-ID tokens, and `generate` under a prefix function: what benchmarks measure against,
and an oracle that shares no code with our decoder. Knows no timing.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from recsys.data.sequences import IntArray
from recsys.generator.flat import FlatModel


def causal_lm(model: FlatModel, vocab_size: int | None = None) -> LlamaForCausalLM:
    """A language model with the weights of `model`, in evaluation mode: its heads become rows of one `lm_head`.

    Args:
        model: with body `llama` and heads without bias, as a causal LM's head has none.
        vocab_size: rows of embedding and head; beyond those of semantic IDs they stand for a language's tokens, never
            legal. None = semantic IDs alone.

    Raises:
        ValueError: the body is another one, a head has a bias, or the vocabulary is too small.
    """
    config: Any = model.body.transformer.config
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"body must be llama, got {config.model_type}")
    heads = _heads(model)
    if any(bool(head.bias.any()) for head in heads):
        raise ValueError("heads have biases, which the head of a causal LM lacks; set them to 0")
    rows = model.embedding.num_embeddings
    if vocab_size is not None and vocab_size < rows:
        raise ValueError(f"vocab_size must be at least {rows}, got {vocab_size}")
    special = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
    lm = LlamaForCausalLM(
        LlamaConfig(**{**config.to_dict(), **special, "vocab_size": vocab_size or rows, "use_cache": True})
    )
    with torch.no_grad():
        lm.model.embed_tokens.weight[:rows] = model.embedding.weight
        lm.lm_head.weight[0] = 0.0
        for offset, head in zip(model.offsets, heads, strict=True):
            lm.lm_head.weight[offset : offset + head.out_features] = head.weight
    body = model.body.transformer.state_dict()
    lm.model.load_state_dict({**body, "embed_tokens.weight": lm.model.embed_tokens.weight})
    return lm.eval()


def load_causal_lm(model: FlatModel, lm: LlamaForCausalLM) -> None:
    """Give `model` the weights of `lm`, one that `causal_lm` made of a model of the same sizes; the way back."""
    with torch.no_grad():
        model.embedding.weight.copy_(lm.model.embed_tokens.weight[: model.embedding.num_embeddings])
        for offset, head in zip(model.offsets, _heads(model), strict=True):
            head.weight.copy_(lm.lm_head.weight[offset : offset + head.out_features])
            head.bias.zero_()
    table = model.body.transformer.state_dict()["embed_tokens.weight"]
    model.body.transformer.load_state_dict({**lm.model.state_dict(), "embed_tokens.weight": table})


def _heads(model: FlatModel) -> list[nn.Linear]:
    return [cast(nn.Linear, head) for head in model.heads]


def item_tokens(model: FlatModel) -> Tensor:
    """int64 [N, L]: the tokens of every item, as `model` and its twin number them; 0 begins a sequence."""
    return model.tokens


class PrefixTable:
    """The catalogue as a dictionary from prefixes to their legal next tokens: what a prefix function looks up."""

    def __init__(self, tokens: IntArray) -> None:
        sets: dict[tuple[int, ...], set[int]] = {}
        for row in tokens.tolist():
            for level, token in enumerate(row):
                sets.setdefault(tuple(row[:level]), set()).add(token)
        self.legal = {prefix: sorted(found) for prefix, found in sets.items()}
        self.item_of = {tuple(row): item for item, row in enumerate(tokens.tolist())}


def generate(
    lm: LlamaForCausalLM,
    table: PrefixTable,
    prompts: Tensor,
    *,
    levels: int,
    k: int,
    beams: int,
    with_scores: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The k best items of every prompt by `generate`, and the sums of their legal log-probabilities.

    Args:
        lm: see `causal_lm`.
        table: of the catalogue.
        prompts: int64 [B, S], of equal length, beginning with token 0.
        levels: tokens an item.
        k: items a prompt; at most `beams`.
        beams: of the search.
        with_scores: False spares `generate` the copies of all logits that it keeps for the sake of the scores.

    Returns:
        Items int64 [B, k], best first, and their scores float32 [B, k] or None.
    """
    prompt_length = prompts.shape[1]

    def legal(_: int, sequence: Tensor) -> list[int]:
        return table.legal[tuple(sequence[prompt_length:].tolist())]

    with torch.inference_mode():
        output: Any = lm.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=beams,
            num_return_sequences=k,
            max_new_tokens=levels,
            do_sample=False,
            # Scores are then sums over the legal tokens alone, as all sequences are equally long.
            length_penalty=0.0,
            renormalize_logits=True,
            prefix_allowed_tokens_fn=legal,
            return_dict_in_generate=True,
            output_scores=with_scores,
        )
    found = output.sequences[:, prompt_length:].tolist()
    items = torch.tensor([table.item_of[tuple(row)] for row in found]).view(len(prompts), k)
    return items, output.sequences_scores.view(len(prompts), k) if with_scores else None
