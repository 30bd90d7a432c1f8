"""A transformer body that ONNX Runtime computes, in place of PyTorch. Reads one graph; knows no manifest.

The graph is that of `export`: it reads rows after a past of any length, 0 included, so that it serves both the history
and the steps of a tree. Needs `onnxruntime` alone, on the CPU.

Shapes: B sequences, S rows, P cached rows, D width; keys and values are [B, heads, P, D / heads] a layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recsys.errors import ArtifactError

INPUTS, POSITIONS, MASK = "inputs_embeds", "position_ids", "attention_mask"
"""Inputs of the graph beside the past: float32 [B, S, D], int64 [B, S], float32 [B, 1, S, P + S] (0 or -max)."""
HIDDEN = "hidden"
"""The first output, float32 [B, S, D]; the others are keys and values of P + S rows."""


def past_names(num_layers: int) -> list[str]:
    """Names of the inputs that hold keys and values, in the graph's order."""
    return [f"past_{part}.{layer}" for layer in range(num_layers) for part in ("key", "value")]


class OnnxBody(nn.Module):
    """What `Body` is to a search, from an exported graph; it has no weights that PyTorch knows and cannot be trained.

    Caches are transformers' own, over tensors that share memory with ONNX Runtime's results. May be shared by threads.

    Args:
        graph: the file that `export.export_body` wrote, or `quantize.quantize_graph`.
        threads: of one pass; PyTorch's number when None.

    Raises:
        ArtifactError: the file is missing, or no graph that this class understands.
    """

    def __init__(self, graph: Path, threads: int | None = None) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # A thread that spins while it waits takes the core from whoever else serves on this machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"onnx: cannot load {graph}: {reason}; export it again") from error
        shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
        self._past_names = past_names((len(shapes) - 3) // 2)
        if shapes.keys() != {INPUTS, POSITIONS, MASK, *self._past_names}:
            raise ArtifactError(f"onnx: {graph} is no exported body: its inputs are {', '.join(shapes)}")
        self._past_shapes = [(shapes[name][1], shapes[name][3]) for name in self._past_names]

    def forward(self, inputs: Tensor) -> Tensor:
        """float32 [B, S, D] to float32 [B, S, D], to score with.

        Raises:
            ValueError: a gradient is asked for.
        """
        if torch.is_grad_enabled() and inputs.requires_grad:
            raise ValueError("an exported body cannot be trained; train the recommender that it was exported from")
        return self.prefill(inputs)[0]

    def prefill(self, inputs: Tensor) -> tuple[Tensor, DynamicCache]:
        """See `tree_decoding.TreeBody`."""
        batch_size, size = inputs.shape[:2]
        empty = [torch.zeros(batch_size, heads, 0, width) for heads, width in self._past_shapes]
        cache = DynamicCache(list(zip(empty[::2], empty[1::2], strict=True)))
        hidden = self.extend(
            inputs,
            cache,
            positions=torch.arange(size).expand(batch_size, -1),
            visible=torch.ones(size, size, dtype=torch.bool).tril().expand(batch_size, -1, -1),
        )
        return hidden, cache

    def extend(self, inputs: Tensor, cache: DynamicCache, positions: Tensor, visible: Tensor) -> Tensor:
        """See `tree_decoding.TreeBody`."""
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        past = [table for layer in cache.layers for table in (layer.keys, layer.values)]
        feeds = {INPUTS: _array(inputs), POSITIONS: _array(positions), MASK: _array(mask.unsqueeze(1))}
        feeds |= {name: _array(table) for name, table in zip(self._past_names, past, strict=True)}
        hidden, *present = (torch.from_numpy(output) for output in self._session.run(None, feeds))
        for layer, keys, values in zip(cache.layers, present[::2], present[1::2], strict=True):
            # New tensors take the place of the old ones, which other caches may share (see `caches`).
            layer.keys, layer.values = keys, values
        return hidden


def _array(tensor: Tensor) -> npt.NDArray[np.generic]:
    """The tensor's own memory where it is contiguous."""
    array: npt.NDArray[np.generic] = tensor.detach().contiguous().numpy()
    return array
