"""8-bit weights for an exported graph: dynamic quantization of the constant matrices. Needs the extra `onnx`.

Activations are quantized as they come (8 bits, a scale a tensor), weights once (8 bits, a scale a column); products of
activations among themselves, that is attention, stay float32, and so do embeddings and heads, which are not in the
graph at all.
"""

from __future__ import annotations

import logging
import platform
from pathlib import Path

from recsys.extras import require_extra

_CPU_FACTS = Path("/proc/cpuinfo")
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


def saturates(cpu_facts: Path = _CPU_FACTS) -> bool:
    """Whether this CPU adds pairs of 8-bit products in 16 bits, which overflow with weights of all 8 bits.

    x86 without VNNI does; where it cannot be found out, x86 is taken to.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if not cpu_facts.is_file():
        return True
    for line in cpu_facts.read_text().splitlines():
        if line.startswith("flags"):
            return _EXACT.isdisjoint(line.partition(":")[2].split())
    return True


def quantize_graph(source: Path, target: Path, *, reduce_range: bool) -> None:
    """Write `source` with 8-bit weights as `target` and `<target>.data`.

    Args:
        source: a graph of `export_body`.
        target: the file to write, in a directory that exists.
        reduce_range: use 7 bits of each weight, so that CPUs which `saturates` names give the right sums.

    Raises:
        ConfigError: the extra `onnx` is not installed.
    """
    require_extra("onnx", needed_by="export")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a step that the exporter has made already, through the root logger
    try:
        quantize_dynamic(
            source,
            target,
            # Gemm is how the exporter writes a product with a bias; it becomes a MatMul on the way.
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)
