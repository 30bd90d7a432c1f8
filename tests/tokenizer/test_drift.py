from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.tokenizer import RKMeansConfig, RQVAEConfig, build_tokenizer
from recsys.tokenizer.drift import drift_report

CONFIGS = {
    "rkmeans": RKMeansConfig(levels=3, codebook_size=16, code_dim=8),
    "rqvae": RQVAEConfig(levels=3, codebook_size=16, code_dim=8, hidden=(32,), warmup_steps=50, steps=150),
}


def items(count: int, seed: int, clusters: range = range(12), noise: float = 0.3) -> np.ndarray:
    """float32 [count, 24] of a fixed world of clusters."""
    centres = np.random.default_rng(42).normal(size=(40, 24))
    rng = np.random.default_rng(seed)
    return (centres[rng.choice(np.array(clusters), size=count)] + noise * rng.normal(size=(count, 24))).astype(
        np.float32
    )


@pytest.fixture(scope="module", params=CONFIGS)
def fitted(request: pytest.FixtureRequest):
    reference = items(600, seed=0)
    tokenizer = build_tokenizer(CONFIGS[request.param])
    tokenizer.fit(reference)
    return tokenizer, reference


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("count", [60, 600])
def test_other_items_of_the_same_catalogue_are_no_drift(fitted, count: int, seed: int) -> None:
    tokenizer, reference = fitted
    report = drift_report(tokenizer, reference, items(count, seed))
    assert report["reasons"] == []
    assert report["drifted"] is False
    assert report["unseen_share"] == 1.0


def test_same_items_are_no_drift_at_all(fitted) -> None:
    tokenizer, reference = fitted
    report = drift_report(tokenizer, reference, reference)
    assert report["error_ratio"] == 1.0
    assert report["usage_divergence"] == [0.0] * len(tokenizer.codebook_sizes)
    assert report["tail_share"] == pytest.approx(0.01, abs=0.002)
    assert report["unseen_share"] == 0.0
    assert not report["drifted"]


def test_items_of_another_kind_are_drift_by_every_measure(fitted) -> None:
    tokenizer, reference = fitted
    report = drift_report(tokenizer, reference, items(200, 1, clusters=range(12, 24)))
    assert report["drifted"]
    assert [reason.split()[0] for reason in report["reasons"]][:3] == ["error_ratio", "tail_share", "usage_divergence"]
    assert report["rel_recon"]["current"] > 1.5 * report["rel_recon"]["reference"]
    assert report["tail_share"] > 0.5


def test_some_new_kinds_in_a_catalogue_that_is_else_the_same_are_drift(fitted) -> None:
    tokenizer, reference = fitted
    current = np.concatenate([reference, items(70, 1, clusters=range(12, 24))])
    report = drift_report(tokenizer, reference, current)
    assert report["unseen_share"] == pytest.approx(70 / 670)
    assert report["drifted"]
    # As many of the kinds known are not.
    assert not drift_report(tokenizer, reference, np.concatenate([reference, items(70, 1)]))["drifted"]


def test_catalogue_that_shrinks_to_some_kinds_is_seen_by_the_usage_alone(fitted) -> None:
    tokenizer, reference = fitted
    report = drift_report(tokenizer, reference, items(300, 1, clusters=range(4)))
    assert report["reasons"][0].startswith("usage_divergence of level 1")
    assert report["perplexity"]["current"][0] < 0.6 * report["perplexity"]["reference"][0]


def test_same_seed_same_report(fitted) -> None:
    tokenizer, reference = fitted
    first, second = (drift_report(tokenizer, reference, items(60, 1), seed=3) for _ in range(2))
    assert first == second


def test_divergence_is_in_bits() -> None:
    """Two items with two codes against two others with two other codes: nothing in common is one bit."""
    tokenizer = build_tokenizer(RKMeansConfig(levels=1, codebook_size=4, code_dim=2))
    corners = np.array([[0, 0], [0, 1], [5, 0], [5, 1]], dtype=np.float32)
    tokenizer.fit(corners)
    report = drift_report(tokenizer, corners[:2], corners[2:])
    assert report["usage_divergence"] == pytest.approx([1.0])
    assert report["perplexity"] == {"reference": pytest.approx([2.0]), "current": pytest.approx([2.0])}


def test_broken_vectors_are_errors(fitted) -> None:
    tokenizer, reference = fitted
    with pytest.raises(DataError, match="12 dimensions, but the tokenizer was fitted on 24"):
        drift_report(tokenizer, reference, reference[:, :12])
    broken = reference.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        drift_report(tokenizer, reference, broken)
    with pytest.raises(DataError, match="at least one"):
        drift_report(tokenizer, reference, reference[:0])
