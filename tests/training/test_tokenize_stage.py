"""The stage `tokenize` after a kill: what was learned and found before it is not made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.data import Sequences
from recsys.tokenizer import RKMeansConfig, RQVAEConfig, TokenizerConfig, build_tokenizer
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.rkmeans import RKMeansTokenizer
from recsys.tokenizer.rqvae import RQVAETokenizer
from training.pipeline import Workspace
from training.stages import tokenize

TRAIN = Sequences.from_lists([[0, 1, 2]])
SETTINGS: dict[str, TokenizerConfig] = {
    "rkmeans": RKMeansConfig(levels=2, codebook_size=8, code_dim=4),
    "rqvae": RQVAEConfig(levels=2, codebook_size=8, code_dim=4, hidden=(8,), steps=20, warmup_steps=5),
    "balanced": RKMeansConfig(levels=2, codebook_size=8, code_dim=4, balanced="all"),
    "counting": RKMeansConfig(levels=1, codebook_size=8, code_dim=4, collisions="extra_level"),
}


def workspace(directory: Path) -> Workspace:
    for name in ("output", "resume"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return Workspace(inputs={}, output=directory / "output", resume=directory / "resume", run_dir=directory)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())
def test_steps_give_what_fitting_at_once_gives(config: TokenizerConfig, vectors: np.ndarray, tmp_path: Path) -> None:
    tokenizer, ids = tokenize._fitted(config, vectors, TRAIN, workspace(tmp_path))
    expected = build_tokenizer(config)
    expected_ids = expected.fit(vectors, TRAIN)
    np.testing.assert_array_equal(ids.codes, expected_ids.codes)
    np.testing.assert_array_equal(ids.raw_codes, expected_ids.raw_codes)
    tokenizer.save(tmp_path / "stepwise")
    expected.save(tmp_path / "at-once")
    for file in (tmp_path / "at-once").iterdir():
        assert file.read_bytes() == (tmp_path / "stepwise" / file.name).read_bytes()


@pytest.mark.parametrize("method", ["rkmeans", "rqvae"])
def test_a_kill_loses_one_slice_of_codes_at_most(
    method: str, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SETTINGS[method]
    expected = build_tokenizer(config).fit(vectors, TRAIN)
    monkeypatch.setattr(tokenize, "_KEPT_TOGETHER", 20)
    encoded: list[int] = []
    encode_raw = NearestCodeTokenizer.encode_raw

    def killed_at_the_third(self: NearestCodeTokenizer, embeddings: np.ndarray) -> np.ndarray:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(embeddings))
        return encode_raw(self, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(NearestCodeTokenizer, "encode_raw", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            tokenize._fitted(config, vectors, TRAIN, workspace(tmp_path))

    def learned_again(*_: object) -> None:
        raise AssertionError("it was learned before")

    monkeypatch.setattr(RKMeansTokenizer, "learn", learned_again)
    monkeypatch.setattr(RQVAETokenizer, "learn", learned_again)
    left: list[int] = []

    def counted(self: NearestCodeTokenizer, embeddings: np.ndarray) -> np.ndarray:
        left.append(len(embeddings))
        return encode_raw(self, embeddings)

    monkeypatch.setattr(NearestCodeTokenizer, "encode_raw", counted)
    _, ids = tokenize._fitted(config, vectors, TRAIN, workspace(tmp_path))
    assert (encoded, left) == ([20, 20], [10])
    np.testing.assert_array_equal(ids.codes, expected.codes)
    np.testing.assert_array_equal(ids.raw_codes, expected.raw_codes)
