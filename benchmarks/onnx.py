"""The claim: on the CPU, 8-bit weights in ONNX Runtime decode at least 1.5 times as fast as PyTorch, and rank as well.

Speed: one request, a history of 50 items (201 rows), 20 beams, 4 codes, 10,000 items; flat models with random weights,
since speed does not depend on them, of 8.4 million parameters and of the shape of SmolLM2-135M. The three sides take
turns, and the minimum of each is reported: wall-clock and CPU milliseconds.
Quality: flat and nested models trained for a few epochs on Amazon Scientific (codes of co-occurrence vectors), and
whatever finished runs are named; the test cases ranked by PyTorch, by ONNX in float32 and in 8 bits, and what the gate
of `recsys export --int8` says.

    recsys bench onnx [--threads 1 2] [--repeats 9] [--data-root FOLDER] [--epochs 6] [--cases 10000]
                      [--run RUN ...] [--json]

Exports and trained models are kept in the cache, outside the checkout. Where other processes have the cores too, set
OMP_WAIT_POLICY=PASSIVE: else PyTorch's threads wait for each other by spinning, and lose by far more than they should.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from recsys.assets import default_cache_dir
from recsys.data import Examples, IntArray
from recsys.data.sequences import Sequences
from recsys.encoder.collaborative import cooccurrence_embeddings
from recsys.errors import QualityError
from recsys.files import atomic_directory
from recsys.generator import GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.generator.onnx import GateConfig, GateReport, OnnxBody
from recsys.generator.onnx.export import export_body
from recsys.generator.onnx.gate import check, compare
from recsys.generator.onnx.quantize import quantize_graph, saturates
from recsys.progress import console
from recsys.tokenizer import RKMeansConfig, build_tokenizer
from training.bench import compared_data
from training.config import stored_config
from training.fit import FitConfig, fit_generator
from training.layout import DATA, ENCODE, TOKENIZE, TRAIN
from training.results import find_run
from training.stages import data, encode, tokenize, train

_CODEBOOKS = (256, 256, 256, 256)
_ITEMS, _HISTORY, _BEAMS, _LIST = 10_000, 50, 20, 10
_NANO = LlamaConfig(
    vocab_size=1,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=4,
    use_cache=False,
    bos_token_id=None,
    eos_token_id=None,
)
_SMOLLM2 = LlamaConfig(
    vocab_size=1,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    bos_token_id=None,
    eos_token_id=None,
    use_cache=False,
)
_SHAPES: dict[str, LlamaConfig] = {"nano_8.4m": _NANO, "smollm2_135m": _SMOLLM2}


def main(arguments: list[str]) -> dict[str, Any]:
    """`speed` by shape and threads, `quality` by model, whether the CPU needs 7-bit weights, and how threads wait."""
    parser = argparse.ArgumentParser(prog="recsys bench onnx", description=__doc__)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads of a pass")
    parser.add_argument("--repeats", type=int, default=9, help="timed requests a side")
    parser.add_argument("--data-root", type=Path, help="folder that holds the data sets in the import format")
    parser.add_argument("--epochs", type=int, default=6, help="of the models that are trained for the quality")
    parser.add_argument("--cases", type=int, default=10_000, help="test cases that are ranked, at most")
    parser.add_argument("--run", nargs="*", default=[], help="finished runs whose models are judged too")
    options = parser.parse_args(arguments)
    cache = default_cache_dir() / "bench-onnx"
    judged = {f"scientific_{shape}": _trained_here(shape, options, cache) for shape in ("nested", "flat")}
    judged |= {Path(run).name: _finished_run(run, options.cases) for run in options.run}
    quality = {name: _quality(name, one) for name, one in judged.items()}
    speed = {name: _speed(name, config, options.threads, options.repeats, cache) for name, config in _SHAPES.items()}
    return {
        "seven_bit_weights": saturates(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "speed": speed,
        "quality": quality,
    }


# ---------------------------------------------------------------------------------------------------------------------
# the three sides
# ---------------------------------------------------------------------------------------------------------------------


def _graphs(name: str, recommender: GenerativeRecommender, cache: Path) -> dict[str, Path]:
    """The body as a graph in float32 and in 8 bits; made once a name."""
    directory = cache / name
    if not directory.is_dir():
        started = time.monotonic()
        with atomic_directory(directory) as temporary:
            export_body(recommender.model.body, temporary / "body.onnx")
            quantize_graph(temporary / "body.onnx", temporary / "int8.onnx", reduce_range=saturates())
        console.print(f"exported {name} in {time.monotonic() - started:.0f} s", highlight=False)
    return {"onnx": directory / "body.onnx", "onnx_int8": directory / "int8.onnx"}


def _sides(
    recommender: GenerativeRecommender, graphs: Mapping[str, Path], threads: int
) -> dict[str, GenerativeRecommender]:
    exported = {side: recommender.with_body(OnnxBody(graph, threads)) for side, graph in graphs.items()}
    return {"torch": recommender, **exported}


# ---------------------------------------------------------------------------------------------------------------------
# speed
# ---------------------------------------------------------------------------------------------------------------------


def _speed(name: str, shape: LlamaConfig, threads: list[int], repeats: int, cache: Path) -> dict[str, Any]:
    recommender = _random_recommender(shape)
    graphs = _graphs(name, recommender, cache)
    sizes = {f"{side}_mib": round(_file_size(graph) / 2**20, 1) for side, graph in graphs.items()}
    return {
        "body_parameters": sum(parameter.numel() for parameter in recommender.model.body.parameters()),
        **sizes,
        "threads": {str(count): _timings(recommender, graphs, count, repeats) for count in threads},
    }


def _random_recommender(shape: LlamaConfig) -> GenerativeRecommender:
    random = np.random.default_rng(0)
    flat = random.choice(int(np.prod(_CODEBOOKS)), size=_ITEMS, replace=False)
    codes = np.stack(np.unravel_index(flat, _CODEBOOKS), axis=1).astype(np.int64)
    # One small block, to be replaced by the transformer that is measured.
    model_config = ModelConfig(
        shape="flat",
        body="llama",
        hidden_size=shape.hidden_size,
        num_heads=shape.num_attention_heads,
        num_layers=1,
        max_history=_HISTORY,
    )
    config = GeneratorConfig(model=model_config, beams=_BEAMS)
    torch.manual_seed(0)
    model = build_model(config, codes, _CODEBOOKS, None)
    model.body.transformer = LlamaModel(shape)
    return GenerativeRecommender(config, codes, _CODEBOOKS, None, model)


def _timings(
    recommender: GenerativeRecommender, graphs: Mapping[str, Path], threads: int, repeats: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    sides = _sides(recommender, graphs, threads)
    history = Sequences.from_lists([np.random.default_rng(1).integers(0, _ITEMS, size=_HISTORY)])
    answers = {side: one.recommend(history, _BEAMS) for side, one in sides.items()}  # also warms them up
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    prefill: dict[str, list[float]] = {side: [] for side in sides}
    items, lengths = torch.from_numpy(history.items).unsqueeze(0), torch.tensor([_HISTORY])
    for _ in range(repeats):
        for side, one in sides.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            one.recommend(history, _BEAMS)
            wall[side].append(time.perf_counter() - started)
            cpu[side].append(time.process_time() - cpu_started)
            prefill[side].append(_seconds(lambda one=one: one.model.start(items, lengths)))
    result: dict[str, Any] = {
        side: {
            "wall_ms": round(1000 * min(wall[side]), 1),
            "cpu_ms": round(1000 * min(cpu[side]), 1),
            "reading_the_history_ms": round(1000 * min(prefill[side]), 1),
        }
        for side in sides
    }
    for side in graphs:
        result[side] |= {
            "speedup_wall": round(min(wall["torch"]) / min(wall[side]), 2),
            "speedup_cpu": round(min(cpu["torch"]) / min(cpu[side]), 2),
            "same_items": int(np.isin(answers[side].items, answers["torch"].items).sum()),
        }
    same_order = np.array_equal(answers["onnx"].items, answers["torch"].items)
    result["onnx"] |= {
        "same_order": same_order,
        "largest_score_difference": float(np.abs(answers["onnx"].scores - answers["torch"].scores).max()),
    }
    return result


def _seconds(work: Callable[[], Any]) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


def _file_size(graph: Path) -> int:
    return graph.stat().st_size + graph.with_name(f"{graph.name}.data").stat().st_size


# ---------------------------------------------------------------------------------------------------------------------
# quality
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """A trained recommender, and the cases that it is judged on."""

    recommender: GenerativeRecommender
    cases: Examples
    mask_seen: bool

    def lists(self, side: GenerativeRecommender) -> IntArray:
        """int64 [n, 10]: what the recommender, or another form of it, answers to the cases."""
        return train.rank(side, self.cases.histories, _LIST, beams=_BEAMS, mask_seen=self.mask_seen)


def _trained_here(shape: str, options: argparse.Namespace, cache: Path) -> _Judged:
    """A nano model over codes of residual k-means on co-occurrence vectors; kept in the cache."""
    dataset, split = compared_data("scientific", options.data_root)
    vectors, _ = cooccurrence_embeddings(split.train, dataset.catalog.num_items)
    ids = build_tokenizer(RKMeansConfig(levels=len(_CODEBOOKS), codebook_size=_CODEBOOKS[0])).fit(vectors)
    directory = cache / f"scientific-{shape}-{options.epochs}-epochs"
    if not directory.is_dir():
        config = GeneratorConfig(model=ModelConfig.model_validate({"shape": shape}))
        torch.manual_seed(0)
        model = build_model(config, ids.codes, ids.codebook_sizes, vectors)
        recommender = GenerativeRecommender(config, ids.codes, ids.codebook_sizes, vectors, model)
        valid = _Judged(recommender=recommender, cases=train.sample(split.valid, 1000, 0), mask_seen=True)
        fit = FitConfig(epochs=options.epochs, patience=options.epochs, validate_every=options.epochs)

        def ndcg() -> float:
            return compare(valid.lists(recommender), valid.lists(recommender), valid.cases).ndcg

        fit_generator(model, split.train, fit, seed=0, validate=ndcg)
        with atomic_directory(directory) as temporary:
            recommender.save(temporary)
    return _Judged(
        recommender=GenerativeRecommender.load(directory, ids.codes, ids.codebook_sizes, vectors),
        cases=train.sample(split.test, options.cases, 0),
        mask_seen=True,
    )


def _finished_run(run: str, max_cases: int) -> _Judged:
    config = stored_config(find_run(Path(run)))
    ids, embeddings = tokenize.load_ids(config.run_dir / TOKENIZE), encode.load_embeddings(config.run_dir / ENCODE)
    return _Judged(
        recommender=train.load_recommender(config.run_dir / TRAIN, config.generator, ids, embeddings),
        cases=train.sample(data.load_split(config.run_dir / DATA).test, max_cases, 0),
        mask_seen=config.evaluation.mask_seen,
    )


def _quality(name: str, judged: _Judged) -> dict[str, Any]:
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        graphs = _graphs(name, judged.recommender, Path(temporary))
        lists = {side: judged.lists(one) for side, one in _sides(judged.recommender, graphs, threads=1).items()}
    return {
        "shape": judged.recommender.config.model.shape,
        "body_parameters": sum(parameter.numel() for parameter in judged.recommender.model.body.parameters()),
        **{side: _figures(compare(lists["torch"], lists[side], judged.cases)) for side in graphs},
    }


def _figures(report: GateReport) -> dict[str, Any]:
    try:
        check(report, GateConfig())
        verdict = "passes"
    except QualityError as error:
        verdict = str(error)
    return {
        **report.model_dump(),
        "recall_drop": report.recall_drop,
        "ndcg_drop": report.ndcg_drop,
        "gate": verdict,
    }
