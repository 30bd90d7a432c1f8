"""A directory with an exported body: how it is published, verified and put under a recommender.

    body.onnx, body.onnx.data   the graph and its weights
    manifest.json               what it was made of, what its files must be, and how it ranked

Publishing is all or nothing: what ranks worse than the gate allows leaves no directory, and an earlier one as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from recsys.config import StrictConfig
from recsys.data.sequences import Examples, IntArray
from recsys.errors import ArtifactError
from recsys.files import atomic_directory, sha256_file, write_json
from recsys.generator.body import CausalBody
from recsys.generator.onnx.export import export_body
from recsys.generator.onnx.gate import GateConfig, GateReport, check, compare
from recsys.generator.onnx.quantize import quantize_graph, saturates
from recsys.generator.onnx.runtime import OnnxBody
from recsys.generator.recommender import GenerativeRecommender

GRAPH = "body.onnx"
_MANIFEST = "manifest.json"
_FORMAT = 1


class ExportManifest(StrictConfig):
    """What an exported body is."""

    format: int = _FORMAT
    """Version of the directory's layout."""
    weights: str
    """SHA-256 over the weights that were exported: the rest of the recommender must be of the same fit."""
    int8: bool
    """Whether weights are 8-bit integers."""
    reduce_range: bool
    """With `int8`: whether 7 bits of them are used, which every CPU adds up exactly."""
    gate: GateReport
    """How the exported form ranks beside the recommender in PyTorch."""
    files: dict[str, str]
    """SHA-256 by name."""


def publish(
    recommender: GenerativeRecommender,
    directory: Path,
    cases: Examples,
    rank: Callable[[GenerativeRecommender, Examples], IntArray],
    *,
    int8: bool,
    gate: GateConfig,
) -> ExportManifest:
    """Export the recommender's body to `directory`, if its exported form ranks as well as `gate` asks.

    Args:
        recommender: trained, in float32 on the CPU.
        directory: to make; an earlier export there is replaced.
        cases: on which both forms are compared; not those of training.
        rank: lists int64 [n, 10] of a recommender for the cases.
        int8: make weights 8-bit integers, of 7 bits where this CPU needs it.
        gate: what may be lost.

    Raises:
        ConfigError: the extra `onnx` is not installed.
        QualityError: the exported form ranks worse than `gate` allows.
        ValueError: the recommender's body is an exported one.
    """
    body = _torch_body(recommender)
    reduce_range = int8 and saturates()
    with atomic_directory(directory) as temporary:
        graph = temporary / GRAPH
        exact = temporary / f"exact-{GRAPH}" if int8 else graph
        export_body(body, exact)
        if int8:
            quantize_graph(exact, graph, reduce_range=reduce_range)
            for file in (exact, _weights_of(exact)):
                file.unlink()
        report = compare(rank(recommender, cases), rank(recommender.with_body(OnnxBody(graph)), cases), cases)
        check(report, gate)
        files = (graph, _weights_of(graph))
        for file in files:
            file.chmod(0o644)  # quantization writes for the owner only; another user may serve
        manifest = ExportManifest(
            weights=_digest(body),
            int8=int8,
            reduce_range=reduce_range,
            gate=report,
            files={file.name: sha256_file(file) for file in files},
        )
        write_json(temporary / _MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def onnx_recommender(
    recommender: GenerativeRecommender, directory: Path, *, threads: int | None = None
) -> GenerativeRecommender:
    """The recommender whose histories and tree steps ONNX Runtime computes; the one given stays as it is.

    Args:
        recommender: the one that was exported, on the device that is to compute.
        directory: what `publish` made.
        threads: of one pass; PyTorch's number when None.

    Raises:
        ArtifactError: files are missing or changed, of another fit or version, or made for another kind of CPU.
        ValueError: the recommender's body is an exported one.
    """
    manifest = read_manifest(directory)
    for name, digest in manifest.files.items():
        file = directory / name
        if not file.is_file() or sha256_file(file) != digest:
            raise ArtifactError(f"onnx: {file} is missing or was changed; export it again with `recsys export RUN`")
    if manifest.weights != _digest(_torch_body(recommender)):
        raise ArtifactError(f"onnx: {directory} was exported from other weights; export again with `recsys export RUN`")
    if manifest.int8 and not manifest.reduce_range and saturates():
        raise ArtifactError(
            f"onnx: the 8-bit weights in {directory} need a CPU with VNNI, or its sums overflow; export on this machine"
        )
    return recommender.with_body(OnnxBody(directory / GRAPH, threads, recommender.model.learned.device))


def read_manifest(directory: Path) -> ExportManifest:
    """The manifest of an export; does not look at the other files.

    Raises:
        ArtifactError: there is none, or it is damaged or of another version.
    """
    try:
        facts = json.loads((directory / _MANIFEST).read_text())
        if facts.get("format") != _FORMAT:
            raise ArtifactError(f"onnx: {directory} has format {facts.get('format')}, this version reads {_FORMAT}")
        return ExportManifest.model_validate(facts)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"onnx: cannot read {directory}: {reason}; make it with `recsys export RUN`") from error


def _torch_body(recommender: GenerativeRecommender) -> CausalBody:
    body = recommender.model.body
    if isinstance(body, OnnxBody):
        raise ValueError("recommender: its body is an exported one already; take the one in PyTorch")
    return body


def _weights_of(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")


def _digest(body: CausalBody) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(body.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
