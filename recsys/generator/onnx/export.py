"""A transformer body as one ONNX graph, which reads a history and makes the steps of a tree. Needs the extra `onnx`.

The past is an input and may have 0 rows, the mask says what each row sees, and positions are given: that is all that
prefill and tree decoding differ in. Knows nothing of recommenders, and nothing of quantization.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recsys.extras import require_extra
from recsys.generator.body import CausalBody
from recsys.generator.onnx.runtime import HIDDEN, INPUTS, MASK, POSITIONS, past_names


def export_body(body: CausalBody, graph: Path) -> None:
    """Write the body as `graph`, and its weights as `<graph>.data` beside it: a protobuf holds 2 GiB at most.

    Args:
        body: in evaluation mode, float32, on the CPU; any base model of transformers that takes `inputs_embeds`, a
            `cache` and a 4-D mask.
        graph: the file to write, `*.onnx`.

    Raises:
        ConfigError: the extra `onnx` is not installed.
    """
    require_extra("onnx", needed_by="export")
    width: int = cast(Any, body.transformer).config.hidden_size
    # Sizes of 0 and 1 would be taken for constants.
    num_sequences, num_past, num_rows = 2, 5, 3
    with torch.no_grad():
        past = _tables(body.prefill(torch.zeros(num_sequences, num_past, width))[1])
    example = (
        torch.zeros(num_sequences, num_rows, width),
        torch.full((num_sequences, num_rows), num_past),
        torch.zeros(num_sequences, 1, num_rows, num_past + num_rows),
        past,
    )
    free = torch.export.Dim.DYNAMIC
    names = past_names(len(past) // 2)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _OneGraph(body.transformer).eval(),
            example,
            dynamo=True,
            dynamic_shapes={
                INPUTS: {0: free, 1: free},
                POSITIONS: {0: free, 1: free},
                MASK: {0: free, 2: free, 3: free},
                "past": [{0: free, 2: free}] * len(past),
            },
            input_names=[INPUTS, POSITIONS, MASK, *names],
            output_names=[HIDDEN, *(name.replace("past", "present") for name in names)],
            verbose=False,
        )
        assert program is not None, "dynamo=True returns a program"
        program.save(graph, external_data=True)


class _OneGraph(nn.Module):
    """The body with its cache as plain tensors, keys and values a layer in turn."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, attention_mask: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        output = self.transformer(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            cache=cache,
            use_cache=True,
        )
        return (output.last_hidden_state, *_tables(cache))


def _tables(cache: DynamicCache) -> list[Tensor]:
    return [table for layer in cache.layers for table in (layer.keys, layer.values)]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are about its own insides; what goes wrong is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
