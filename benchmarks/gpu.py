"""What a GPU brings: training throughput and its share of the peak; reading and searching, with graphs and without.

    recsys bench gpu [--parts training decode mask faiss] [--json]

Needs a CUDA device, and is sized for less than eight minutes on an H200. Weights and logs are random: seconds depend on
sizes alone. A part that fails is reported by name with its error, and the others run.

- `training`: what fits log of themselves (`training.throughput`), in bfloat16: the quickstart's generator, a flat one
  of 30 M parameters, and a flat one whose body has the shape of SmolLM2-135M.
- `decode`: milliseconds of reading a batch and of searching it, each with graphs and without; bodies in bfloat16.
  Where others have published a figure for the size, it stands beside ours with what differs; all of theirs were taken
  on an H100 and without a catalogue that lists are confined to.
- `mask`: a level of a search whose model costs nothing, which is the work that a catalogue makes.
- `faiss`: flat search on the GPU, and where Faiss has cuVS search of a CAGRA graph there and of the same graph on the
  CPU, against flat search on the CPU; needs faiss-gpu or faiss-gpu-cuvs.

`--smoke` goes through all of it on the CPU at sizes that measure nothing, to show that the script works; it is never
recorded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaModel, PreTrainedModel, Qwen3Config, Qwen3Model

from recsys.data import IntArray, Sequences
from recsys.errors import ConfigError
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.constraints import Constraints, RangeCounter
from recsys.generator.decoder import beam_search
from recsys.generator.flat import FlatModel
from recsys.generator.graphs import Recorded, SearchGraphs
from recsys.generator.nested import NestedModel
from recsys.generator.placement import on_device, place
from recsys.generator.recommender import build_model
from recsys.generator.trie import Children, ItemTrie
from recsys.retrieval.gpu import copy_to_gpus, has_cuvs, search_graph
from recsys.retrieval.shards import BREADTH, FloatArray, make_shards
from training.fit import FitConfig, fit_generator
from training.random_twins import CODES, LEVELS, give_body, initialise, num_parameters, smollm2_config, synthetic_codes
from training.throughput import peak_tflops

_NVIDIA = "NVIDIA recsys-examples, sid-gr-inference, H100"
_K = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what it is asked."""

    name: str
    shape: Literal["nested", "flat"] = "flat"
    hidden_size: int = 512
    """Of a Llama body with a head for every 64, where `body` is None."""
    layers: int = 8
    body: Callable[[], PreTrainedModel] | None = None
    levels: int = LEVELS
    history: int
    """Items."""
    batch: int
    beams: int = 50
    published_ms: float | None = None
    """Of the whole, by others."""
    published: str = ""
    """Where, and what differs."""


def _qwen3_1_7b() -> PreTrainedModel:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=8192,
        )
    )


def _smollm2() -> PreTrainedModel:
    return LlamaModel(smollm2_config())


def _cases() -> list[Case]:
    qwen = {"body": _qwen3_1_7b, "levels": 3, "beams": 256}
    deep = {"hidden_size": 1024, "beams": 200}
    context = f"{_NVIDIA}: Qwen3-1.7B, beam 256, 3 tokens, context"
    against = (
        "NVIDIA recsys-examples, generate_beam_decode, H100: 8 layers of 1024, 4 codes of 256, beam 200, history of"
    )
    return [
        *(Case(name=f"nested-30m-b{n}", shape="nested", layers=6, history=50, batch=n) for n in (1, 8, 64)),
        *(Case(name=f"flat-30m-b{n}", history=50, batch=n) for n in (1, 8, 64)),
        *(Case(name=f"smollm2-135m-b{n}", body=_smollm2, history=50, batch=n) for n in (1, 8)),
        Case(name="deep-256-b1", history=64, batch=1, published_ms=21.5, published=f"{against} 256, batch 1", **deep),
        Case(
            name="deep-2048-b16", history=512, batch=16, published_ms=80, published=f"{against} 2048, batch 16", **deep
        ),
        Case(
            name="qwen3-1000-b1", history=333, batch=1, published_ms=17.6, published=f"{context} 1000, batch 1", **qwen
        ),
        Case(name="qwen3-1000-b8", history=333, batch=8, published_ms=93, published=f"{context} 1000, batch 8", **qwen),
        Case(
            name="qwen3-5000-b1", history=1666, batch=1, published_ms=42, published=f"{context} 5000, batch 1", **qwen
        ),
        Case(
            name="qwen3-5000-b8", history=1666, batch=8, published_ms=308, published=f"{context} 5000, batch 8", **qwen
        ),
    ]


def main(arguments: list[str]) -> dict[str, Any]:
    """Each part's figures, or `error`."""
    parser = argparse.ArgumentParser(prog="recsys bench gpu", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS))
    parser.add_argument("--repeats", type=int, default=20, help="timed calls; the median counts")
    parser.add_argument("--items", type=int, default=100_000, help="of the catalogue in decode")
    parser.add_argument("--mask-items", type=int, default=20_000_000, help="of the catalogue in mask")
    parser.add_argument("--steps", type=int, default=200, help="of each fit; the first 50 warm up")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="in the index")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; nothing is recorded")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        raise ConfigError("bench gpu: needs a CUDA device, and PyTorch finds none here; --smoke tries the script out")
    options.device = torch.device("cpu" if options.smoke else "cuda")
    if options.smoke:
        options.repeats, options.items, options.mask_items, options.steps, options.vectors = 1, 600, 600, 3, 200
    found: dict[str, Any] = {"smoke": True} if options.smoke else {"peak_bfloat16_tflops": peak_tflops()}
    for part in options.parts:
        started = time.perf_counter()
        figures = _guarded(lambda part=part: _PARTS[part](options))  # type: ignore[misc]
        found[part] = {**figures, "seconds": time.perf_counter() - started}
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


# ---- training --------------------------------------------------------------------------------------------------------


def _training(options: argparse.Namespace) -> dict[str, Any]:
    if options.smoke:
        return {"tiny": _fit(options, ModelConfig(hidden_size=16, max_history=5), None, (8, 8, 8), 12, 300)}
    small = ModelConfig(max_history=100)
    flat = ModelConfig(
        shape="flat", body="llama", hidden_size=512, num_layers=8, num_heads=8, max_history=50, dropout=0
    )
    # Lines of 512 rows, the length that language models are taught with.
    large = ModelConfig(shape="flat", body="llama", hidden_size=64, max_history=128, dropout=0)
    sizes = (CODES,) * LEVELS
    return {
        "quickstart": _fit(options, small, None, (64,) * 3, FitConfig().batch_positions, 1_682),
        "quickstart_large_batch": _fit(options, small, None, (64,) * 3, 32_768, 1_682),
        "flat_30m": _fit(options, flat, None, sizes, 16_384, 12_000),
        "smollm2_135m": _fit(options, large, _smollm2, sizes, 8_192, 12_000),
    }


def _fit(
    options: argparse.Namespace,
    config: ModelConfig,
    body: Callable[[], PreTrainedModel] | None,
    sizes: tuple[int, ...],
    batch_positions: int,
    num_items: int,
) -> dict[str, Any]:
    """Medians over what a fit of so many steps says of itself, without its first report."""
    model = _model(config, body, _codes(num_items, sizes), sizes, options.device)
    length = config.max_history + 1
    users = max(1, options.steps * max(1, batch_positions // length))
    items = np.random.default_rng(0).integers(0, model.trie.num_items, (users, length))
    said: dict[str, list[float]] = {}
    fit_generator(
        model,
        Sequences.from_lists(items),
        FitConfig(epochs=1, batch_positions=batch_positions, device=options.device.type),
        seed=0,
        validate=lambda: 0.0,
        log=lambda tag, value, step: said.setdefault(tag, []).append(value),
    )
    figures = {tag.removeprefix("train/"): statistics.median(values[1:] or values) for tag, values in said.items()}
    return {
        "body_parameters": num_parameters(model.body),
        "batch_positions": batch_positions,
        "rows_per_sequence": length * model.rows_per_item,
        **{name: figures.get(name) for name in ("rows_per_s", "targets_per_s", "tflops", "mfu")},
        **_peak_memory(options),
    }


# ---- decoding --------------------------------------------------------------------------------------------------------


def _decode(options: argparse.Namespace) -> dict[str, Any]:
    if options.smoke:
        cases = [
            Case(name=shape, shape=shape, hidden_size=64, layers=1, history=3, batch=2, beams=12)  # type: ignore[arg-type]
            for shape in ("nested", "flat")
        ]
    else:
        cases = _cases()
    return {case.name: _guarded(lambda case=case: _case(options, case)) for case in cases}  # type: ignore[misc]


@torch.inference_mode()
def _case(options: argparse.Namespace, case: Case) -> dict[str, Any]:
    sizes = (CODES,) * case.levels
    config = ModelConfig(
        shape=case.shape,
        body="llama",
        hidden_size=case.hidden_size,
        num_layers=case.layers,
        num_heads=case.hidden_size // 64,
        max_history=case.history,
        dropout=0,
    )
    model = _model(config, case.body, _codes(options.items, sizes), sizes, options.device)
    place(model, options.device, torch.bfloat16)
    graphs = SearchGraphs(model, batch_sizes=[case.batch])
    items = torch.randint(0, model.trie.num_items, (case.batch, case.history), device=options.device)
    lengths = torch.full((case.batch,), case.history, device=options.device)
    prefix = model.encode(items, lengths)
    search = {"k": _K, "beams": case.beams, "constraints": Constraints()}

    def eager() -> Any:
        return beam_search(model, model.trie, model.state(prefix), batch_size=case.batch, **search)

    def graphed() -> Any:
        return graphs.search(model, model.trie, prefix, **search)

    same = (eager().items == graphed().items).float().mean().item()
    figures = {
        "read_ms": _ms(options, lambda: model.encode(items, lengths)),
        "read_graph_ms": _ms(options, lambda: graphs.encode(model, items, lengths)),
        "search_ms": _ms(options, eager),
        "search_graph_ms": _ms(options, graphed),
    }
    assert not graphs.counts.eager, f"worked off without a graph: {graphs.counts.eager}"
    ours = figures["read_graph_ms"] + figures["search_graph_ms"]
    return {
        **figures,
        "total_ms": figures["read_ms"] + figures["search_ms"],
        "total_graph_ms": ours,
        "share_of_equal_places": same,
        **({"published_ms": case.published_ms, "published": case.published} if case.published_ms else {}),
        "body_parameters": num_parameters(model.body),
        "items": model.trie.num_items,
        "levels": case.levels,
        "history_rows": case.history * model.rows_per_item,
        "batch": case.batch,
        "beams": case.beams,
        **_peak_memory(options),
    }


# ---- the catalogue's share -------------------------------------------------------------------------------------------


class _Free:
    """A model that costs one look into a table a candidate."""

    def __init__(self, device: torch.device) -> None:
        self._tables = torch.randn(LEVELS, CODES, device=device)

    def start(self, items: Tensor, lengths: Tensor) -> None:
        return None

    def child_logits(self, state: Any, level: int, children: Children) -> Tensor:
        return self._tables[level][children.codes]

    def advance(self, state: Any, level: int, beams: Tensor, codes: Tensor) -> None:
        return None


@torch.inference_mode()
def _mask(options: argparse.Namespace) -> dict[str, Any]:
    batch, beams = 2, 70
    trie = on_device(ItemTrie(synthetic_codes(options.mask_items), (CODES,) * LEVELS), options.device)
    model = _Free(options.device)
    seen = [np.random.default_rng(row).integers(0, options.mask_items, 50) for row in range(batch)]
    counter = RangeCounter(trie, Constraints(deny=seen), batch)
    assert counter.denied is not None

    def search() -> list[Tensor]:
        found = beam_search(model, trie, None, batch_size=batch, k=_K, beams=beams, constraints=counter)
        return [found.items, found.scores]

    pool = torch.cuda.graph_pool_handle() if options.device.type == "cuda" else None
    graph = Recorded(search, [counter.denied], pool)
    denied = counter.denied.clone()
    return {
        "level_ms": _ms(options, search) / LEVELS,
        "level_graph_ms": _ms(options, lambda: graph([denied])) / LEVELS,
        "items": options.mask_items,
        "levels": LEVELS,
        "codes": CODES,
        "batch": batch,
        "beams": beams,
        "denied": len(seen[0]),
        "trie_gib": trie.num_bytes / 2**30,
        "published_ms": 0.033,
        "published": "STATIC, arXiv 2602.22647, TPU v6e: the mask alone, 20 million items, 8 codes of 2048, batch 2, "
        "beams 70; ours is all of a level beside the model: mask, normalisation, 50 denied items, selection",
    }


# ---- retrieval -------------------------------------------------------------------------------------------------------


def _faiss(options: argparse.Namespace) -> dict[str, Any]:
    gpus = faiss.get_num_gpus()
    if not options.smoke and gpus == 0:
        return {"left_out": "Faiss finds no GPU; make install-gpu brings faiss-gpu"}
    dim, queries = 128, 64
    random = np.random.default_rng(0)
    vectors = random.normal(size=(options.vectors, dim)).astype(np.float32)
    asked = random.normal(size=(queries, dim)).astype(np.float32)
    on_cpu = faiss.IndexFlatIP(dim)
    on_cpu.add(vectors)
    searches: dict[str, Callable[[FloatArray], IntArray]] = {"flat_cpu": lambda some: on_cpu.search(some, _K)[1]}
    figures: dict[str, Any] = {"vectors": options.vectors, "dim": dim, "queries": queries, "k": _K}
    if gpus:
        flat = copy_to_gpus([on_cpu], "flat")
        searches["flat_gpu"] = lambda some: flat.search(some, _K)[1]
        if has_cuvs():
            started = time.perf_counter()
            shards = make_shards(vectors, "cagra", 1)
            figures["cagra_build_s"] = time.perf_counter() - started
            graph = copy_to_gpus(shards, "cagra")
            kept = {"breadth": BREADTH, "num_vectors": options.vectors}
            searches["cagra_gpu"] = lambda some: search_graph(graph, some, _K, **kept)[1]
            searches["cagra_cpu"] = lambda some: shards[0].search(some, _K)[1]
        else:
            figures["cagra"] = "this Faiss is built without cuVS; make install-cuvs brings one with it"
    exact = searches["flat_cpu"](asked)
    for name, search in searches.items():
        found = search(asked)
        figures[name] = {
            "one_query_ms": _ms(options, lambda search=search: search(asked[:1])),  # type: ignore[misc]
            f"{queries}_queries_ms": _ms(options, lambda search=search: search(asked)),  # type: ignore[misc]
            "recall": float(np.mean([len(np.intersect1d(*pair)) / _K for pair in zip(found, exact, strict=True)])),
        }
    return figures


# ---- what they share -------------------------------------------------------------------------------------------------

_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "training": _training,
    "decode": _decode,
    "mask": _mask,
    "faiss": _faiss,
}


def _guarded(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or what went wrong: the other figures are worth having."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _ms(options: argparse.Namespace, action: Callable[[], Any]) -> float:
    """Median milliseconds of a call until the device is done with it."""
    seconds = []
    for turn in range(2 + options.repeats):
        _wait(options)
        started = time.perf_counter()
        action()
        _wait(options)
        if turn >= 2:
            seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def _wait(options: argparse.Namespace) -> None:
    if options.device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(options: argparse.Namespace) -> dict[str, float]:
    """Since it was last asked."""
    if options.device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gib": peak}


def _codes(num_items: int, sizes: tuple[int, ...]) -> IntArray:
    """int64 [N, L]: distinct semantic IDs, N at most `num_items`."""
    if sizes == (CODES,) * LEVELS:
        return synthetic_codes(num_items)
    drawn = np.random.default_rng(0).integers(0, sizes, (num_items, len(sizes)))
    return np.unique(drawn, axis=0)


def _model(
    config: ModelConfig,
    body: Callable[[], PreTrainedModel] | None,
    codes: IntArray,
    sizes: tuple[int, ...],
    device: torch.device,
) -> FlatModel | NestedModel:
    """Random weights, on `device`."""
    torch.manual_seed(0)
    model = build_model(GeneratorConfig(model=config), codes, sizes, None)
    assert isinstance(model, FlatModel | NestedModel)
    if body is not None and isinstance(model, FlatModel):
        with device:
            give_body(model, body)
    elif isinstance(model, FlatModel):
        initialise(model)
    place(model, device)
    return model
