"""Linear maps of a language model with 8-bit weights (LLM.int8, arXiv 2208.07339), frozen, beside adapters.

Weights are rounded to 8 bits row by row, activations as they come; those columns of the activations that are large stay
in 16 bits, and so do the weights' columns that they meet. The arithmetic is that of bitsandbytes, on a GPU or the CPU.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.extras import require_extra

_OUTLIER = 6.0
"""Activations beyond it are kept in 16 bits: the value of the paper."""


class Int8Linear(nn.Linear):
    """A frozen linear map whose weights are int8 [out, in] with a scale a row; gradients pass to its inputs alone."""

    scales: Tensor
    """float32 [out]: the largest magnitude of each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        quantized, scales, _ = _bitsandbytes().functional.int8_vectorwise_quant(linear.weight.detach().half())
        self.weight = nn.Parameter(quantized, requires_grad=False)
        # A frozen weight is not part of what a fit keeps, and neither is its scale.
        self.register_buffer("scales", scales, persistent=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Float [..., in] to the same dtype [..., out]."""
        library = _bitsandbytes()
        state = library.MatmulLtState()
        state.CB, state.SCB = self.weight, self.scales
        state.threshold, state.has_fp16_weights = _OUTLIER, False
        return cast(Tensor, library.matmul(inputs, self.weight, bias=self.bias, state=state))

    def dequantized(self) -> nn.Linear:
        """The same map in float32, as near as 8 bits are."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.float() * (self.scales / 127).unsqueeze(1), requires_grad=False)
        linear.bias = self.bias
        return linear


def quantize(transformer: nn.Module) -> None:
    """Put 8-bit weights in place of those of every linear map.

    Raises:
        ConfigError: the extra `quantized` is not installed, or there is no linear map that can be replaced.
    """
    _bitsandbytes()
    # It says at every product that float32 is rounded, which is what is asked for.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    linear = [(name, module) for name, module in transformer.named_modules() if type(module) is nn.Linear]
    if not linear:
        raise ConfigError("generator.model.lm.load_in 8bit: this architecture has no linear maps; set it to float32")
    for name, module in linear:
        transformer.set_submodule(name, Int8Linear(module))


def dequantize(transformer: nn.Module) -> None:
    """Put float32 weights in place of the 8-bit ones, below adapters too."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, Int8Linear):
            transformer.set_submodule(name, module.dequantized())


def _bitsandbytes() -> Any:
    require_extra("quantized", needed_by="generator.model.lm.load_in=8bit")
    import bitsandbytes

    return bitsandbytes
