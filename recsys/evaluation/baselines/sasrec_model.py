"""The network of SASRec: a causal transformer whose states score all items. Knows nothing of data or fitting.

Shapes: B batch, T positions, D width, H heads, V items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.evaluation.config import SasRecConfig


class SasRecModel(nn.Module):
    """Pre-norm transformer over item vectors; the same vectors, by dot product, are the output layer.

    Sequences are padded on the right. A causal mask then hides the padding from every real position, so attention
    needs no other mask; states at padded positions mean nothing.
    """

    def __init__(self, num_items: int, config: SasRecConfig) -> None:
        super().__init__()
        self.item_vectors = nn.Embedding(num_items, config.hidden_size)
        self.position_vectors = nn.Embedding(config.max_history, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self._input_scale = config.hidden_size**0.5
        self.apply(_initialize)

    def forward(self, items_BT: Tensor) -> Tensor:
        """int64 [B, T], T at most `max_history`, to states float32 [B, T, D]: state t predicts item t + 1."""
        x_BTD = self.item_vectors(items_BT) * self._input_scale
        x_BTD = self.dropout(x_BTD + self.position_vectors.weight[: items_BT.shape[1]])
        for block in self.blocks:
            x_BTD = block(x_BTD)
        states: Tensor = self.norm(x_BTD)
        return states


class _Block(nn.Module):
    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_dropout = config.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.dropout),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(b, t, 3, self.num_heads, d // self.num_heads)
        q_BHTd, k_BHTd, v_BHTd = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHTd = functional.scaled_dot_product_attention(
            q_BHTd,
            k_BHTd,
            v_BHTd,
            is_causal=True,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        mixed_BTD = mixed_BHTd.transpose(1, 2).reshape(b, t, d)
        x_BTD = x_BTD + self.dropout(self.attention_out(mixed_BTD))
        result: Tensor = x_BTD + self.feed_forward(x_BTD)
        return result


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is a device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the matrix products while fitting; `auto` is bfloat16 where the hardware multiplies it natively.

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        precision = "bfloat16" if native else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
