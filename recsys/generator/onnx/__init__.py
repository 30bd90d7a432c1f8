"""Decoding on the CPU through ONNX Runtime: a generator's body as one graph, with 8-bit weights behind a gate."""

from recsys.generator.onnx.artifact import ExportManifest, onnx_recommender, publish, read_manifest
from recsys.generator.onnx.gate import GateConfig, GateReport
from recsys.generator.onnx.runtime import OnnxBody

__all__ = [
    "ExportManifest",
    "GateConfig",
    "GateReport",
    "OnnxBody",
    "onnx_recommender",
    "publish",
    "read_manifest",
]
