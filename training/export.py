"""Exporting a finished run's generator for ONNX Runtime, judged on the run's own validation cases."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from recsys.data import Examples, IntArray
from recsys.errors import ArtifactError
from recsys.evaluation.metrics import LIST_LENGTH
from recsys.extras import require_extra
from recsys.generator import GenerativeRecommender
from recsys.generator.onnx import ExportManifest, GateConfig, onnx_recommender, publish
from training.config import RunConfig
from training.layout import DATA, ENCODE, ONNX, TOKENIZE
from training.pipeline import is_finished, run_lock
from training.runs import set_threads
from training.stages import align, data, encode, tokenize, train


def export_run(config: RunConfig, *, int8: bool, gate: GateConfig, max_cases: int) -> ExportManifest:
    """Write the body of the run's generator to its directory `ONNX`, if it ranks as `gate` asks.

    Args:
        config: of the run.
        int8: make its weights 8-bit integers.
        gate: what may be lost on the validation cases.
        max_cases: at most so many of them are ranked (a fixed random sample).

    Raises:
        ConfigError: the extra `onnx` is not installed.
        ArtifactError: a stage that is read is not finished.
        QualityError: the exported form ranks worse than `gate` allows; an earlier export stays.
        RunLockedError: another process is writing this run.
    """
    require_extra("onnx", needed_by="recsys export")
    set_threads(config)
    with run_lock(config.run_dir):
        recommender = _trained(config)
        cases = train.sample(data.load_split(config.run_dir / DATA).valid, max_cases, config.run.seed)

        def rank(side: GenerativeRecommender, cases: Examples) -> IntArray:
            return train.rank(
                side,
                cases.histories,
                LIST_LENGTH,
                beams=config.generator.beams,
                mask_seen=config.evaluation.mask_seen,
            )

        return publish(recommender, config.run_dir / ONNX, cases, rank, int8=int8, gate=gate)


def load_exported(config: RunConfig) -> GenerativeRecommender:
    """The run's generator on its exported body, verified.

    Raises:
        ArtifactError: there is no export, or not of this run's weights.
    """
    return onnx_recommender(_trained(config), config.run_dir / ONNX)


def print_manifest(manifest: ExportManifest, directory: Path) -> None:
    """Print on stdout how the exported form ranks beside PyTorch, and where it lies."""
    gate = manifest.gate
    bits = "8 bits" if not manifest.reduce_range else "8 bits, of which 7 are used"
    table = Table("validation", "PyTorch", f"ONNX, {bits if manifest.int8 else 'float32'}", "loss")
    table.add_row("Recall@10", f"{gate.recall:.4f}", f"{gate.recall_after:.4f}", f"{gate.recall_drop:.1%}")
    table.add_row("NDCG@10", f"{gate.ndcg:.4f}", f"{gate.ndcg_after:.4f}", f"{gate.ndcg_drop:.1%}")
    table.add_row("shared items", "", f"{gate.overlap:.1%}", "")
    stdout = Console()
    stdout.print(table)
    stdout.print(f"export: {directory} ({gate.cases} cases)", highlight=False, soft_wrap=True)


def _trained(config: RunConfig) -> GenerativeRecommender:
    generator = align.served_stage(config)
    unfinished = [name for name in (DATA, ENCODE, TOKENIZE, generator) if not is_finished(config.run_dir, name)]
    if unfinished:
        raise ArtifactError(
            f"{config.run_dir}: not finished: {', '.join(unfinished)}; finish the run with `recsys run CONFIG`"
        )
    return train.load_recommender(
        config.run_dir / generator,
        config.generator,
        tokenize.load_ids(config.run_dir / TOKENIZE),
        encode.load_embeddings(config.run_dir / ENCODE),
    )
