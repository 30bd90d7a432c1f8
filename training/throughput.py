"""How fast a fit is: rows and targets a second, and which share of a GPU's arithmetic that takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from recsys.generator.body import CausalBody
from training.objectives import BatchLoss

_EVERY = 50
"""Steps that a figure is over."""
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "T4": 65.0,
}
"""Dense 16-bit matrix products of one device, from the vendor's data sheets, by words of its name; the first counts."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Floating-point operations that a training step cannot do without; what is computed again does not count."""

    per_row: float
    """For each row that the body reads (arXiv 2001.08361, section 2.1): two a weight in the forward pass, two for the
    gradients of activations, two more where the weight is trained. Embeddings are looked up."""
    per_pair: float
    """For each row and each one that it attends to, itself included (arXiv 2204.02311, appendix B, whose count takes
    the rows behind it too): a product of keys and one of values, forward and twice in the backward pass."""

    @classmethod
    def of(cls, body: CausalBody) -> StepCost:
        """Of a body whose weights say whether they are trained. What is not the body is left out."""
        tables = [module for module in body.modules() if isinstance(module, nn.Embedding)]
        looked_up = {id(p) for module in tables for p in module.parameters()}
        weights = [p for p in body.parameters() if id(p) not in looked_up]
        config = body.transformer.config
        # Some heads are wider than their share of the width.
        head = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
        return cls(
            per_row=float(sum((6 if p.requires_grad else 4) * p.numel() for p in weights)),
            per_pair=12.0 * config.num_hidden_layers * config.num_attention_heads * head,
        )


class Throughput:
    """Logs `train/rows_per_s`, `train/targets_per_s`, `train/tflops`, and `train/mfu` on a GPU whose peak is known."""

    def __init__(self, cost: StepCost, log: Callable[[str, float, int], None]) -> None:
        self._cost = cost
        self._log = log
        self._peak = peak_tflops()
        self._begin()

    def _begin(self) -> None:
        self._steps = self._rows = self._pairs = self._targets = 0
        self._started = time.perf_counter()

    def count(self, done: BatchLoss, step: int) -> None:
        """One more step."""
        self._steps += 1
        self._rows += done.num_rows
        self._pairs += done.num_pairs
        self._targets += done.num_items
        if self._steps == _EVERY:
            self.report(step)

    def report(self, step: int) -> None:
        """Log what was counted since the last report, if anything, under number `step`."""
        if self._steps == 0:
            return
        seconds = time.perf_counter() - self._started
        tflops = (self._cost.per_row * self._rows + self._cost.per_pair * self._pairs) / seconds / 1e12
        self._log("train/rows_per_s", self._rows / seconds, step)
        self._log("train/targets_per_s", self._targets / seconds, step)
        self._log("train/tflops", tflops, step)
        if self._peak is not None:
            self._log("train/mfu", tflops / self._peak, step)
        self._begin()


def peak_tflops() -> float | None:
    """Of dense 16-bit matrix products on the current device; None without one, or where its peak is not known here."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for words, peak in _PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)
