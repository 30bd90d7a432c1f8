"""A transformer body that ONNX Runtime computes, in place of PyTorch. Reads one graph; knows no manifest.

The graph is that of `export`: it reads rows after a past of any length, 0 included, so that it serves both the history
and the steps of a tree. Needs `onnxruntime` alone; on a GPU `onnxruntime-gpu`, which is in the extra `gpu`.

Shapes: B sequences, S rows, P cached rows, D width; keys and values are [B, heads, P, D / heads] a layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recsys.errors import ArtifactError, ConfigError
from recsys.generator import caches

INPUTS, POSITIONS, MASK = "inputs_embeds", "position_ids", "attention_mask"
"""Inputs of the graph beside the past: float32 [B, S, D], int64 [B, S], float32 [B, 1, S, P + S] (0 or -max)."""
HIDDEN = "hidden"
"""The first output, float32 [B, S, D]; the others are keys and values of P + S rows."""


def past_names(num_layers: int) -> list[str]:
    """Names of the inputs that hold keys and values, in the graph's order."""
    return [f"past_{part}.{layer}" for layer in range(num_layers) for part in ("key", "value")]


class OnnxBody(nn.Module):
    """What `Body` is to a search, from an exported graph; it has no weights that PyTorch knows and cannot be trained.

    It reads tensors where they are and writes into new ones; caches are transformers' own. May be shared by threads.

    Args:
        graph: the file that `export.export_body` wrote, or `quantize.quantize_graph`.
        threads: of one pass; PyTorch's number when None.
        device: where it computes; the CPU when None.

    Raises:
        ArtifactError: the file is missing, or no graph that this class understands.
        ConfigError: this ONNX Runtime does not compute on such a device.
    """

    def __init__(self, graph: Path, threads: int | None = None, device: torch.device | None = None) -> None:
        super().__init__()
        self._device = torch.device("cpu") if device is None else device
        on_gpu = self._device.type == "cuda"
        provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
        missing = ConfigError(f"onnx: ONNX Runtime has no {provider} here; install with: pip install 'recsys[gpu]'")
        if provider not in onnxruntime.get_available_providers():
            raise missing
        # Without TF32, as PyTorch computes.
        settings = {"device_id": self._device.index or 0, "use_tf32": 0} if on_gpu else {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # A thread that spins while it waits takes the core from whoever else serves on this machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=[(provider, settings)])
        except Exception as error:  # its exceptions have no common base of their own
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"onnx: cannot load {graph}: {reason}; export it again") from error
        # It goes on without a provider whose libraries do not load.
        if provider not in self._session.get_providers():
            raise missing
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
        empty = [inputs.new_zeros(batch_size, heads, 0, width) for heads, width in self._past_shapes]
        cache = DynamicCache(list(zip(empty[::2], empty[1::2], strict=True)))
        hidden = self.extend(
            inputs,
            cache,
            positions=torch.arange(size, device=inputs.device).expand(batch_size, -1),
            visible=torch.ones(size, size, dtype=torch.bool, device=inputs.device).tril().expand(batch_size, -1, -1),
        )
        return hidden, cache

    def extend(self, inputs: Tensor, cache: DynamicCache, positions: Tensor, visible: Tensor) -> Tensor:
        """See `tree_decoding.TreeBody`."""
        if inputs.device.type != self._device.type:
            raise ValueError(f"inputs are on {inputs.device}, this body computes on {self._device}; make it anew there")
        mask = inputs.new_zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        past = caches.tables(cache)
        feeds = dict(zip(self._past_names, past, strict=True))
        feeds |= {INPUTS: inputs, POSITIONS: positions, MASK: mask.unsqueeze(1)}
        feeds = {name: tensor.detach().contiguous() for name, tensor in feeds.items()}
        size = past[0].shape[2] + inputs.shape[1]
        hidden = torch.empty_like(feeds[INPUTS])
        # New tensors take the place of the old ones, which other caches may share (see `caches`).
        present = [table.new_empty(*table.shape[:2], size, table.shape[3]) for table in past]
        binding = self._session.io_binding()
        for name, tensor in feeds.items():
            binding.bind_input(name, *_place(tensor))
        for entry, tensor in zip(self._session.get_outputs(), [hidden, *present], strict=True):
            binding.bind_output(entry.name, *_place(tensor))
        if inputs.is_cuda:
            # The two work in streams of their own.
            torch.cuda.current_stream(inputs.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        for layer, keys, values in zip(cache.layers, present[::2], present[1::2], strict=True):
            layer.keys, layer.values = keys, values
        return hidden


def _place(tensor: Tensor) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
    """Where a contiguous tensor lies, and as what."""
    kind = np.int64 if tensor.dtype == torch.int64 else np.float32
    return tensor.device.type, tensor.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()
