"""The claim: our constrained decoder against transformers' `generate` under a prefix function, side by side.

The same Llama body and weights, catalogue, histories and beams in one process: our flat shape and the twin that a user
would assemble (`training.transformers_twin`), whose lists must be the same items in the same order. The nested shape
with a body of the same size is held against the same `generate`. Then, of ours alone: what is not the network
(`mask_share`), and cost against the size of the catalogue.

    recsys bench decode [--repeats 3] [--codes DIRECTORY] [--smollm2] [--json]

Weights are random, and logits spread as widely as a trained model's (standard deviation 2). One thread counts CPU
seconds, which other processes disturb least; more threads count wall seconds. Either side counts with its fastest
repetition; the two take turns. Codes are synthetic, or those of a run (`--codes runs/NAME/tokenize/semantic_ids`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaModel

from recsys.data import IntArray
from recsys.generator.constraints import Constraints
from recsys.generator.recommender import GenerativeRecommender
from recsys.generator.trie import ItemTrie
from recsys.tokenizer import SemanticIds
from training.random_twins import (
    CODES,
    LEVELS,
    RandomHistories,
    clock,
    clock_name,
    give_body,
    history_prompts,
    num_parameters,
    random_recommender,
    smollm2_config,
    synthetic_codes,
    timed,
)
from training.transformers_twin import PrefixTable, causal_lm, generate, item_tokens

_K = 10


def main(arguments: list[str]) -> dict[str, Any]:
    """Speed-ups are seconds of `generate` over ours; `mask_share` is of a batch with the body of SmolLM2-135M."""
    parser = argparse.ArgumentParser(prog="recsys bench decode", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="turns of either side; ours takes three a turn")
    parser.add_argument("--codes", type=Path, help="semantic IDs of a finished run instead of synthetic ones")
    parser.add_argument("--items", type=int, default=12_000, help="items of the synthetic catalogue")
    parser.add_argument("--hidden-size", type=int, default=256, help="width of the small body")
    parser.add_argument("--layers", type=int, default=8, help="layers of the small body")
    parser.add_argument("--requests", type=int, default=8, help="requests of a batch")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--history", type=int, default=20, help="items of a history")
    parser.add_argument("--vocabulary", type=int, default=150_000, help="a language model's; 0 leaves it out")
    parser.add_argument("--smollm2", action="store_true", help="against `generate` with a body of 135M too; minutes")
    parser.add_argument("--no-large-body", action="store_true", help="measure mask_share with the small body only")
    parser.add_argument(
        "--catalogues", type=int, nargs="*", default=[10_000, 100_000, 1_000_000, 10_000_000], help="sizes to scale to"
    )
    options = parser.parse_args(arguments)

    if options.codes is None:
        codes, sizes = synthetic_codes(options.items), (CODES,) * LEVELS
    else:
        ids = SemanticIds.load(options.codes)
        codes, sizes = ids.codes, ids.codebook_sizes
    histories = RandomHistories(len(codes), options.history)
    flat = _recommender("flat", codes, sizes, options)
    nested = _recommender("nested", codes, sizes, options)
    lm = causal_lm(flat.model)
    table = PrefixTable(item_tokens(flat.model).numpy())

    batch = f"{options.requests}x{options.beams}"
    many = _against(flat, nested, lm, table, histories, options.requests, options.beams, options.repeats)
    one = _against(flat, nested, lm, table, histories, 1, options.beams, 2 * options.repeats)
    identical = [many["identical_top10"], one["identical_top10"]]
    details: dict[str, Any] = {"small_body": {batch: many, f"1x{options.beams}": one}}
    if options.vocabulary:
        wide = causal_lm(flat.model, options.vocabulary)
        details["large_vocabulary"] = {
            batch: _against(flat, nested, wide, table, histories, options.requests, options.beams, 1),
            f"1x{options.beams}": _against(flat, nested, wide, table, histories, 1, options.beams, options.repeats),
        }
        del wide
    shares = {"small_body": _profile(flat, histories, options, 2 * options.repeats)}
    if not options.no_large_body:
        large = _recommender("flat", codes, sizes, options)
        give_body(large.model, lambda: LlamaModel(smollm2_config()))
        shares["large_body"] = _profile(large, histories, options, 2)
        if options.smollm2:
            twin = causal_lm(large.model)
            details["large_body"] = {
                f"1x{options.beams}": _against(large, None, twin, table, histories, 1, options.beams, 2),
                batch: _against(large, None, twin, table, histories, options.requests, options.beams, 1),
            }
    del lm, table
    return {
        "speedup_8x50": many["speedup"],
        "speedup_1x50": one["speedup"],
        "identical_top10": min(identical),
        "mask_share": shares["small_body" if options.no_large_body else "large_body"]["share"],
        "nested_speedup_8x50": many["nested_speedup"],
        "settings": {
            "batches": [batch, f"1x{options.beams}"],
            "levels": len(sizes),
            "codebook_sizes": list(sizes),
            "items": len(codes),
            "history_items": options.history,
            "body_parameters": num_parameters(flat.model.body),
            "threads": torch.get_num_threads(),
            "clock": clock_name(),
        },
        "mask_shares": shares,
        **details,
        "catalogues": [_scaled(size, options) for size in options.catalogues],
    }


def _recommender(
    shape: Literal["flat", "nested"], codes: IntArray, sizes: tuple[int, ...], options: argparse.Namespace
) -> GenerativeRecommender:
    return random_recommender(
        shape,
        codes,
        sizes,
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        max_history=options.history,
        beams=options.beams,
    )


def _against(
    flat: GenerativeRecommender,
    nested: GenerativeRecommender | None,
    lm: Any,
    table: PrefixTable,
    histories: RandomHistories,
    requests: int,
    beams: int,
    repeats: int,
) -> dict[str, Any]:
    """Both sides in turns on the same histories, other ones every time."""

    levels = flat.codes.shape[1]
    identical: list[bool] = []
    times: dict[str, list[float]] = {"flat": [], "nested": [], "generate": []}
    # The first of either side warms up.
    generate(lm, table, history_prompts(flat.model, histories.draw(1)), levels=levels, k=_K, beams=beams)
    flat.recommend(histories.draw(requests), _K)
    for _ in range(repeats):
        batch = histories.draw(requests)
        prompts = history_prompts(flat.model, batch)
        for _ in range(3):
            ours, seconds = timed(lambda batch=batch: flat.recommend(batch, _K))  # type: ignore[misc]
            times["flat"].append(seconds)
            if nested is not None:
                times["nested"].append(timed(lambda batch=batch: nested.recommend(batch, _K))[1])  # type: ignore[misc]
        (items, _), seconds = timed(
            lambda prompts=prompts: generate(  # type: ignore[misc]
                lm, table, prompts, levels=levels, k=_K, beams=beams, with_scores=False
            )
        )
        times["generate"].append(seconds)
        identical += (items.numpy() == ours.items).all(axis=1).tolist()
    last = histories.draw(1)
    _, scores = generate(lm, table, history_prompts(flat.model, last), levels=levels, k=_K, beams=beams)
    assert scores is not None
    largest = float(np.abs(scores.numpy() - flat.recommend(last, _K).scores).max())
    fastest = {name: min(values) for name, values in times.items() if values}
    return {
        "speedup": fastest["generate"] / fastest["flat"],
        **({"nested_speedup": fastest["generate"] / fastest["nested"]} if nested is not None else {}),
        "seconds": fastest,
        "median_seconds": {name: statistics.median(values) for name, values in times.items() if values},
        "requests": requests * repeats,
        "identical_top10": statistics.fmean(identical),
        "largest_score_difference": largest,
    }


class _Stopwatch:
    """Seconds spent inside modules, by hooks on their calls."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.seconds = 0.0
        self._handles = []
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(self._begin))
            self._handles.append(module.register_forward_hook(self._end))

    def _begin(self, *_: Any) -> None:
        self.seconds -= clock()

    def _end(self, *_: Any) -> None:
        self.seconds += clock()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _profile(
    recommender: GenerativeRecommender, histories: RandomHistories, options: argparse.Namespace, turns: int
) -> dict[str, Any]:
    """A batch whose seen items are denied: seconds, rows of the body, and the share of time outside the network.

    That share holds the walk down the trie, counts, selection and all else around the network's calls.
    `filtered` has a filter too, which lets every other item through.
    """
    body = recommender.model.body.transformer
    network = [recommender.model.embedding, body, *recommender.model.heads]
    every_other = np.arange(len(recommender.codes)) % 2 == 0
    shares: dict[str, list[float]] = {"denied": [], "filtered": []}
    seconds = []
    rows: list[int] = []

    def count(_: nn.Module, __: tuple[()], inputs: dict[str, Tensor]) -> None:
        rows.append(inputs["inputs_embeds"].shape[:2].numel())

    counter = body.register_forward_pre_hook(count, with_kwargs=True)
    for turn in range(1 + turns):
        batch = histories.draw(options.requests)
        for kind, allow in (("denied", None), ("filtered", every_other)):
            held = Constraints(allow=allow, deny=list(batch))
            watch = _Stopwatch(network)
            _, total = timed(lambda batch=batch, held=held: recommender.recommend(batch, _K, constraints=held))  # type: ignore[misc]
            watch.remove()
            if turn:
                shares[kind].append(1 - watch.seconds / total)
                if kind == "denied":
                    seconds.append(total)
    counter.remove()
    return {
        "seconds": min(seconds),
        "share": statistics.median(shares["denied"]),
        "filtered_share": statistics.median(shares["filtered"]),
        "body_rows": sum(rows) / (2 * (1 + turns)),
        "body_parameters": num_parameters(recommender.model.body),
    }


def _scaled(num_items: int, options: argparse.Namespace) -> dict[str, Any]:
    """Our flat shape over a synthetic catalogue of `num_items`."""
    recommender = _recommender("flat", synthetic_codes(num_items), (CODES,) * LEVELS, options)
    _, building = timed(lambda: ItemTrie(recommender.codes, recommender.codebook_sizes))
    return {
        "items": num_items,
        **_profile(recommender, RandomHistories(num_items, options.history), options, options.repeats),
        "build_seconds": building,
        "trie_mib": _trie_bytes(recommender) / 2**20,
        "trie_mib_a_million": _trie_bytes(recommender) / 2**20 / (num_items / 1e6),
    }


def _trie_bytes(recommender: GenerativeRecommender) -> int:
    tables: list[Tensor] = []
    for value in vars(recommender.trie).values():
        tables += [table for table in (value if isinstance(value, list) else [value]) if isinstance(table, Tensor)]
    return sum(table.nbytes for table in tables)
