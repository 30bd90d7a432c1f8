"""In which precision a model is trained: which one that is, and the stretch of code in which it holds.

bfloat16 is for the matrix products of transformer bodies, which are most of the work. What small differences are taken
of stays float32: weights and their updates, what goes from layer to layer, logits of items and the log-softmax over the
legal ones, log-ratios, divergences, advantages and losses. Lists that are validated and served are searched outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch

from recsys.evaluation.baselines.sasrec_model import pick_dtype
from recsys.generator.body import CausalBody

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""Of the matrix products; `auto`: bfloat16 on a GPU that multiplies it natively, else float32."""


def training_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What `precision` comes to on `device`; `auto` is float32 on every CPU, so that a fit does not depend on which."""
    if precision == "auto" and device.type != "cuda":
        return torch.float32
    return pick_dtype(precision, device)


@contextmanager
def multiplied_in(dtype: torch.dtype, body: CausalBody) -> Iterator[None]:
    """The body's matrix products are in `dtype`, and as before afterwards.

    With bfloat16 a GPU may also round to 10 bits (TF32) in the products that stay float32: those of codes and heads.
    """
    products = torch.backends.cuda.matmul
    before = body.precision, products.fp32_precision
    body.precision = dtype
    if dtype == torch.bfloat16:
        products.fp32_precision = "tf32"
    try:
        yield
    finally:
        body.precision, products.fp32_precision = before
