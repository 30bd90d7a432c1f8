"""`bench decode`, `bench rollout` and `bench train` at a tiny size: they run, and what they say of equality holds.

No time is judged.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = spec_from_file_location(f"benchmarks_{name}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_decode_finds_the_same_lists_as_generate() -> None:
    sizes = ["--items", "400", "--hidden-size", "16", "--layers", "1", "--requests", "2", "--history", "3"]
    measured = load("decode").main(
        [*sizes, "--repeats", "1", "--beams", "12", "--vocabulary", "1100", "--no-large-body", "--catalogues", "700"]
    )
    assert measured["identical_top10"] == 1.0
    assert measured["large_vocabulary"]["2x12"]["identical_top10"] == 1.0
    assert measured["small_body"]["2x12"]["largest_score_difference"] < 1e-4
    assert measured["settings"]["items"] == 400
    assert 0 < measured["mask_share"] < 1
    assert measured["catalogues"][0]["items"] == 700
    assert all(measured[key] > 0 for key in ("speedup_8x50", "speedup_1x50", "nested_speedup_8x50"))


def test_rollout_proposes_items_of_the_catalogue_on_either_side() -> None:
    sizes = ["--items", "400", "--hidden-size", "16", "--layers", "1", "--prompts", "2", "--history", "3"]
    measured = load("rollout").main([*sizes, "--group-size", "4", "--repeats", "2"])
    assert measured["in_catalogue"] == {"beam": 1.0, "sample": 1.0, "nested": 1.0, "trl": 1.0}
    assert all(measured["distinct_items"][name] == 4.0 for name in ("beam", "sample", "nested"))
    assert 1 <= measured["distinct_items"]["trl"] <= 4
    assert measured["identical_groups"] == 1.0
    assert measured["largest_score_difference"] < 1e-4
    assert measured["speedup"] > 0
    rates = measured["proposals_per_second"]
    assert rates["trl_with_log_probs"] < rates["trl"]
    assert measured["speedup"] == rates["beam"] / rates["trl"]


def test_synthetic_codes_are_distinct_and_uneven_below_a_prefix() -> None:
    codes = load("decode").synthetic_codes(5000)
    assert len(np.unique(codes, axis=0)) == 5000
    assert codes.min() >= 0
    assert codes.max() <= 255
    shares = np.bincount(codes[codes[:, 0] == codes[0, 0], 1], minlength=256)
    assert shares.max() > 3 * max(1, shares.mean())


def test_train_gives_both_sides_the_same_targets(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 12, 60)
    walks = [(random.integers(50) + np.arange(length)) % 50 for length in lengths]
    log = {
        "user_id": np.repeat([f"u{user}" for user in range(60)], lengths),
        "item_id": [f"i{item}" for walk in walks for item in walk],
        "position": [place for length in lengths for place in range(length)],
    }
    pl.DataFrame(log).write_parquet(tmp_path / "interactions.parquet")
    items = [f"i{item}" for item in range(50)]
    pl.DataFrame({"item_id": items, "title": items}).write_parquet(tmp_path / "items.parquet")
    measured = load("train").main(
        [
            *(
                "--epochs",
                "2",
                "--hidden-size",
                "32",
                "--layers",
                "1",
                "--max-history",
                "5",
                "--targets-per-step",
                "40",
            ),
            *(f"data.path={tmp_path}", "tokenizer.codebook_size=8"),
        ]
    )
    targets = int(lengths.sum()) - 2 * 60
    assert measured["settings"]["training_interactions"] == targets
    assert [side["targets"] for side in (*measured["ours"], measured["trainer"])] == [2 * targets] * 3
    assert measured["trainer"]["read_tokens"] > measured["ours"][0]["read_tokens"]
    assert measured["speedup"] > 0
    assert set(measured["ours_minus_trainer"]) == {"recall@10", "ndcg@10"}


def test_a_sample_of_the_trainer_is_a_prefix_with_labels_on_its_last_item() -> None:
    import torch

    from recsys.data.sequences import Sequences

    train = load("train")
    prefixes = train._Prefixes(Sequences.from_lists([[0, 1, 2], [2]]), torch.tensor([[1, 5], [2, 6], [3, 7]]), 1)
    assert [prefixes[index]["input_ids"] for index in range(4)] == [
        [0, 1, 5],
        [0, 1, 5, 2, 6],
        [0, 2, 6, 3, 7],
        [0, 3, 7],
    ]
    assert prefixes[1]["labels"] == [-100, -100, -100, 2, 6]
    padding = train._Padding()
    batch = padding([prefixes[0], prefixes[1]])
    assert batch["input_ids"].tolist() == [[0, 1, 5, 0, 0], [0, 1, 5, 2, 6]]
    assert batch["labels"].tolist() == [[-100, 1, 5, -100, -100], [-100, -100, -100, 2, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert padding.tokens == 10
