"""`recsys tokenizer drift` and `retokenize`, on two runs whose stages are written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data import Catalog, Examples, Sequences, Split
from recsys.data.split import SplitProtocol
from recsys.encoder import EncoderConfig, ItemEmbeddings
from recsys.errors import ArtifactError, ConfigError
from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer, load_tokenizer
from training.catalogues import drift_between, retokenize_between
from training.cli import tokenizer_app

OLD, KEPT = 300, 280
TEXT = EncoderConfig()
PROTOCOL = SplitProtocol(
    kind="leave_last_out", tie_order="source", has_repeats=False, tie_share=0.0, num_train_interactions=2
)


def vectors_of(items: list[int], clusters: int = 8) -> np.ndarray:
    """float32 [n, 12]: an item's vector depends on its number alone."""
    centres = np.random.default_rng(1).normal(size=(40, 12))
    rows = [centres[item % clusters] + 0.3 * np.random.default_rng(item).normal(size=12) for item in items]
    return np.asarray(rows, dtype=np.float32)


def write_run(
    directory: Path, items: list[int], vectors: np.ndarray, *, held_out: int = 0, encoder: EncoderConfig = TEXT
) -> None:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("")
    frame = pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in items],
            "title": [f"item {item}" for item in items],
            "categories": [["all"]] * len(items),
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    Catalog(frame=frame).save(directory / "data" / "catalog.parquet")
    one = Sequences.from_lists([[0, 1]])
    cases = Examples(histories=one, targets=np.array([2]))
    split = Split(
        train=one,
        valid=cases,
        test=cases,
        num_items=len(items),
        protocol=PROTOCOL,
        held_out=np.arange(len(items) - held_out, len(items)),
    )
    split.save(directory / "data" / "split")
    text_dim = 12 if encoder.collaborative_weight == 0 else 8
    stored = ItemEmbeddings(vectors=vectors, text_dim=text_dim, encoder=encoder)
    stored.save(directory / "encode" / "embeddings")
    tokenizer = build_tokenizer(RKMeansConfig(codebook_size=12, code_dim=8))
    ids = tokenizer.fit(vectors)
    ids.save(directory / "tokenize" / "semantic_ids")
    tokenizer.save(directory / "tokenize" / "tokenizer")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under runs/: `old`; `later`, with 20 of its items gone and 30 new; `other`, with items of another kind."""
    root = tmp_path_factory.mktemp("checkout")
    old = list(range(OLD))
    later = [*range(1000, 1030), *range(KEPT)]
    write_run(root / "runs" / "old", old, vectors_of(old))
    write_run(root / "runs" / "later", later, vectors_of(later))
    write_run(root / "runs" / "other", old, vectors_of(old)[:, ::-1] * 2)
    return root


@pytest.fixture
def tokenizer_command(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run `recsys tokenizer ...` in the checkout, here, as a new process spends seconds on imports; returns stdout."""
    monkeypatch.chdir(checkout)

    def run(*arguments: str) -> str:
        capfd.readouterr()
        tokenizer_app(list(arguments), standalone_mode=False)
        return capfd.readouterr().out

    return run


def test_drift_prints_one_json_document(tokenizer_command, checkout: Path) -> None:
    document = json.loads(tokenizer_command("drift", "old", "other", "--json"))
    assert document["drifted"] is True
    assert (document["num_reference"], document["num_current"]) == (OLD, OLD)
    assert document == drift_between(checkout / "runs" / "old", checkout / "runs" / "other")


def test_drift_prints_a_verdict(tokenizer_command) -> None:
    stdout = tokenizer_command("drift", "old", "later")
    assert "no drift: the codebooks still serve" in stdout
    assert "error_ratio" in stdout
    stdout = tokenizer_command("drift", "old", "other")
    assert "drifted: fit the tokenizer again" in stdout
    assert "is above" in stdout


def test_retokenize_keeps_the_names_of_items_that_are_still_there(tokenizer_command, checkout: Path) -> None:
    report = json.loads(tokenizer_command("retokenize", "old", "later", "--out", "frozen", "--json"))
    assert report["unchanged_items"] == {"count": KEPT, "renamed": 0}
    assert report["changed_items"] == {"count": 0, "renamed": 0}
    assert report["new_items"] == {"count": 30}
    assert report["removed_items"] == OLD - KEPT
    assert json.loads((checkout / "frozen" / "report.json").read_text()) == report
    ids = SemanticIds.load(checkout / "frozen" / "semantic_ids")
    old = SemanticIds.load(checkout / "runs" / "old" / "tokenize" / "semantic_ids")
    np.testing.assert_array_equal(ids.codes[30:], old.codes[:KEPT])
    tokenizer = load_tokenizer(checkout / "frozen" / "tokenizer")
    np.testing.assert_array_equal(tokenizer.encode_raw(vectors_of([1000, 1001])), ids.raw_codes[:2])


def test_retokenize_takes_over_codebooks_that_were_fitted_again(tokenizer_command, checkout: Path) -> None:
    stdout = tokenizer_command("retokenize", "old", "later", "--refitted", "--out", "refitted")
    assert "kept_share_without_relabelling" in stdout
    assert f"{KEPT}" in stdout
    ids = SemanticIds.load(checkout / "refitted" / "semantic_ids")
    later = ItemEmbeddings.load(checkout / "runs" / "later" / "encode" / "embeddings").vectors
    tokenizer = load_tokenizer(checkout / "refitted" / "tokenizer")
    np.testing.assert_array_equal(tokenizer.encode_raw(later), ids.raw_codes)
    report = json.loads((checkout / "refitted" / "report.json").read_text())
    assert report["kept_share_with_relabelling"][0] > 2 * report["kept_share_without_relabelling"][0]


def test_report_prints_the_cost_of_uniqueness_and_tables_by_rows(tokenizer_command, checkout: Path) -> None:
    document = {
        "moved_items": 3,
        "moved_mse_before": 0.25,
        "moved_mean_rank": None,
        "adjusted_mutual_information": [[1.0, 0.5], [0.5, 1.0]],
    }
    (checkout / "runs" / "old" / "tokenize" / "report.json").write_text(json.dumps(document))
    lines = [" ".join(line.strip("│ ").split()) for line in tokenizer_command("report", "old").splitlines()]
    assert "moved_items │ 3" in lines
    assert "moved_mse_before │ 0.25" in lines
    assert "adjusted_mutual_information │ 1 0.5" in lines
    assert "│ 0.5 1" in lines or "0.5 1" in lines


def test_mistakes_are_one_line(checkout: Path) -> None:
    command = [sys.executable, "-m", "recsys", "tokenizer", "drift", "old", "nope"]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: no run 'nope'; known under runs/: later, old, other\n"


def test_existing_output_is_not_overwritten(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exists; choose another directory with --out"):
        retokenize_between(checkout / "runs" / "old", checkout / "runs" / "later", tmp_path, refitted=False)


def test_held_out_items_are_no_reference(tmp_path: Path, checkout: Path) -> None:
    items = list(range(OLD))
    write_run(tmp_path / "held", items, vectors_of(items), held_out=40)
    report = drift_between(tmp_path / "held", checkout / "runs" / "old")
    assert report["num_reference"] == OLD - 40
    assert report["unseen_share"] == pytest.approx(40 / OLD)


def test_vectors_of_another_encoder_are_not_compared(tmp_path: Path, checkout: Path) -> None:
    items = list(range(OLD))
    write_run(tmp_path / "other", items, vectors_of(items), encoder=EncoderConfig(model="another"))
    with pytest.raises(ConfigError, match="encoded their items in different ways"):
        drift_between(checkout / "runs" / "old", tmp_path / "other")
    with pytest.raises(ConfigError, match="encoded their items in different ways"):
        retokenize_between(checkout / "runs" / "old", tmp_path / "other", tmp_path / "out", refitted=False)
    assert not (tmp_path / "out").exists()


def test_collaborative_vectors_of_two_runs_have_no_common_space(tmp_path: Path) -> None:
    items = list(range(OLD))
    fused = EncoderConfig(collaborative_weight=0.5)
    for name in ("a", "b"):
        write_run(tmp_path / name, items, vectors_of(items), encoder=fused)
    with pytest.raises(ConfigError, match="no axes in common"):
        drift_between(tmp_path / "a", tmp_path / "b")
    report = retokenize_between(tmp_path / "a", tmp_path / "b", tmp_path / "out", refitted=True)
    assert report["unchanged_items"] == {"count": OLD, "renamed": 0}


def test_run_without_a_tokenizer_is_named(tmp_path: Path, checkout: Path) -> None:
    items = list(range(OLD))
    write_run(tmp_path / "bare", items, vectors_of(items))
    (tmp_path / "bare" / "tokenize" / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"cannot read the tokenizer's config .*bare"):
        drift_between(tmp_path / "bare", checkout / "runs" / "old")
