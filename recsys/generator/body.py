"""The causal transformer bodies that are trained from scratch: transformers models fed with vectors, not token ids."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from recsys.generator.config import ModelConfig


class CausalBody(nn.Module):
    """Maps inputs [B, S, D] to hidden states [B, S, D], each position seeing itself and the ones before it."""

    transformer: Any
    """A transformers model without a head."""
    input_dropout: nn.Module
    precision: torch.dtype = torch.float32
    """Of the matrix products, whatever the weights have; hidden states are float32. Steps of training set it."""

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.transformer.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the body reads."""
        return int(self.transformer.config.max_position_embeddings)

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """Float32 [B, S, D] to float32 [B, S, D].

        Args:
            inputs: one sequence a row; with `positions` several, one after another.
            positions: int64 [B, S], each row's place in its own sequence. A sequence begins where they do not go on by
                1, and sees nothing of the others.
        """
        with self.mixed_precision(inputs.device):
            output = self.transformer(inputs_embeds=self.input_dropout(inputs), position_ids=positions, use_cache=False)
        return cast(Tensor, output.last_hidden_state).float()

    def mixed_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """A context in which matrix products have `precision`; one a reading.

        What autocast has cast where there are no gradients it would use again where there are some.
        """
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.precision)

    def prefill(self, inputs: Tensor) -> tuple[Tensor, DynamicCache]:
        """Like `forward`, and the keys and values [B, H, S, D/H] of every layer as a cache that `extend` takes."""
        cache = DynamicCache(config=self.transformer.config)
        with self.mixed_precision(inputs.device):
            output = self.transformer(inputs_embeds=inputs.to(self.transformer.dtype), cache=cache, use_cache=True)
        return cast(Tensor, output.last_hidden_state).float(), cache

    def extend(self, inputs: Tensor, cache: DynamicCache, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden states [B, Q, D] of further rows, whose keys and values are appended to `cache`.

        Args:
            inputs: [B, Q, D].
            cache: keys and values of S rows; S + Q after the call.
            positions: int64 [B, Q], each row's position in its own sequence.
            visible: bool [B, Q, S + Q], the rows that each new row attends to.
        """
        # On a GPU attention takes a mask of its own precision only.
        inputs = inputs.to(self.transformer.dtype)
        multiplied = inputs.dtype if self.precision == torch.float32 else self.precision
        mask = torch.zeros(visible.shape, dtype=multiplied, device=inputs.device)
        mask = mask.masked_fill(~visible, torch.finfo(multiplied).min)
        with self.mixed_precision(inputs.device):
            output = self.transformer(
                inputs_embeds=inputs,
                cache=cache,
                position_ids=positions,
                attention_mask=mask.unsqueeze(1),
                use_cache=True,
            )
        return cast(Tensor, output.last_hidden_state).float()


class Body(CausalBody):
    """A body of the size that `config` says, with random weights."""

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        super().__init__()
        if config.body == "gpt2":
            self.transformer = GPT2Model(
                GPT2Config(
                    vocab_size=1,
                    bos_token_id=None,
                    eos_token_id=None,
                    n_positions=max_positions,
                    n_embd=config.hidden_size,
                    n_layer=config.num_layers,
                    n_head=config.num_heads,
                    resid_pdrop=config.dropout,
                    embd_pdrop=config.dropout,
                    attn_pdrop=config.dropout,
                    # The same function as GPT-2's `gelu_new`, in one kernel instead of eight.
                    activation_function="gelu_pytorch_tanh",
                    use_cache=False,
                )
            )
            self.input_dropout = nn.Identity()
        else:
            self.transformer = LlamaModel(
                LlamaConfig(
                    vocab_size=1,
                    bos_token_id=None,
                    eos_token_id=None,
                    max_position_embeddings=max_positions,
                    hidden_size=config.hidden_size,
                    intermediate_size=4 * config.hidden_size,
                    num_hidden_layers=config.num_layers,
                    num_attention_heads=config.num_heads,
                    attention_dropout=config.dropout,
                    use_cache=False,
                )
            )
            # Llama has no dropout on its inputs, and small catalogues overfit without one.
            self.input_dropout = nn.Dropout(config.dropout)
