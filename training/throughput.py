"""How fast a fit is: rows and targets a second, and which share of a GPU's arithmetic that takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from recsys.generator.body import CausalBody

_EVERY = 50
"""Steps that a figure is over."""
_PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0, "T4": 65.0}
"""Dense 16-bit matrix products of one device, from the vendor's data sheets, by part of the device's name."""


def flops_per_row(body: CausalBody) -> float:
    """Floating-point operations of one training step for each row that the body reads (arXiv 2001.08361, section 2.1).

    Two a weight in the forward pass, two for the gradients of activations, two more where the weight is trained.
    Embeddings are looked up, and attention over short sequences is left out, which understates the work.
    """
    looked_up = {id(p) for module in body.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    weights = [p for p in body.parameters() if id(p) not in looked_up]
    return float(sum((6 if p.requires_grad else 4) * p.numel() for p in weights))


class Throughput:
    """Logs `train/rows_per_s`, `train/targets_per_s`, `train/tflops`, and `train/mfu` on a GPU whose peak is known."""

    def __init__(self, flops_per_row: float, log: Callable[[str, float, int], None]) -> None:
        self._flops_per_row = flops_per_row
        self._log = log
        self._peak = peak_tflops()
        self._begin()

    def _begin(self) -> None:
        self._steps = self._rows = self._targets = 0
        self._started = time.perf_counter()

    def count(self, rows: int, targets: int, step: int) -> None:
        """One more step, with so many rows and targets."""
        self._steps += 1
        self._rows += rows
        self._targets += targets
        if self._steps == _EVERY:
            self.report(step)

    def report(self, step: int) -> None:
        """Log what was counted since the last report, if anything, under number `step`."""
        if self._steps == 0:
            return
        seconds = time.perf_counter() - self._started
        tflops = self._flops_per_row * self._rows / seconds / 1e12
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
    return next((peak for part, peak in _PEAK_TFLOPS.items() if part in name), None)
