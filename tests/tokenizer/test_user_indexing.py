"""User indices on users with planted interests: texts say the coarse one, behaviour the fine one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import recsys.tokenizer as tokenizer_package
from recsys.data import Sequences
from recsys.errors import ArtifactError, DataError
from recsys.tokenizer.user_config import UserIndexerConfig
from recsys.tokenizer.users import UserIndexer, latest_texts, mean_texts, spectral_users

CONFIG = UserIndexerConfig(
    levels=3, codebook_size=16, code_dim=8, hidden=(32,), warmup_steps=60, steps=140, batch_size=200, max_texts=6
)
NUM_ITEMS, NUM_GROUPS = 200, 20


@pytest.fixture(scope="module")
def users() -> tuple[np.ndarray, Sequences, np.ndarray]:
    """Text vectors float32 [200, 24] of items in 20 groups of 10; 400 users who each read items of one group."""
    rng = np.random.default_rng(0)
    group = np.arange(NUM_ITEMS) % NUM_GROUPS
    texts = rng.normal(size=(NUM_GROUPS // 2, 24))[group // 2] + 0.4 * rng.normal(size=(NUM_ITEMS, 24))
    histories = [
        rng.choice(np.flatnonzero(group == user % NUM_GROUPS), rng.integers(3, 9), replace=False) for user in range(400)
    ]
    train = Sequences.from_lists(histories)
    return texts.astype(np.float32), train, spectral_users(train, NUM_ITEMS, dim=16)


@pytest.fixture(scope="module")
def fitted(users: tuple[np.ndarray, Sequences, np.ndarray]) -> tuple[UserIndexer, np.ndarray, np.ndarray]:
    """The indexer with its unique and its raw codes."""
    indexer = UserIndexer(CONFIG)
    ids = indexer.fit(*users)
    return indexer, ids.codes, ids.raw_codes


def perplexity(codes: np.ndarray) -> float:
    shares = np.bincount(codes) / len(codes)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def jaccard(train: Sequences, pairs: np.ndarray) -> float:
    sets = [set(items.tolist()) for items in train]
    return float(np.mean([len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs]))


def pairs_sharing_a_prefix(codes: np.ndarray) -> np.ndarray:
    same = (codes[:, None, :2] == codes[None, :, :2]).all(axis=2)
    return np.argwhere(np.triu(same, 1))


def test_indices_are_unique_and_codes_are_used(fitted: tuple[UserIndexer, np.ndarray, np.ndarray]) -> None:
    _, codes, raw = fitted
    assert len(np.unique(codes, axis=0)) == 400
    assert all(perplexity(raw[:, level]) >= 0.4 * 16 for level in range(3))


def test_users_who_share_a_prefix_bought_the_same_things(
    users: tuple[np.ndarray, Sequences, np.ndarray], fitted: tuple[UserIndexer, np.ndarray, np.ndarray]
) -> None:
    codes = fitted[1]
    rng = np.random.default_rng(1)
    random = jaccard(users[1], rng.integers(0, 400, (4000, 2)))
    assert jaccard(users[1], pairs_sharing_a_prefix(codes)) >= 3 * random
    shuffled = jaccard(users[1], pairs_sharing_a_prefix(rng.permutation(codes)))
    assert shuffled < 1.5 * random


def test_behaviour_is_alive_in_the_index(
    users: tuple[np.ndarray, Sequences, np.ndarray], fitted: tuple[UserIndexer, np.ndarray, np.ndarray]
) -> None:
    # Groups 2k and 2k + 1 have the same texts; only behaviour tells their users apart.
    def tells_apart(codes: np.ndarray) -> float:
        pairs = pairs_sharing_a_prefix(codes)
        pairs = pairs[pairs[:, 0] % NUM_GROUPS // 2 == pairs[:, 1] % NUM_GROUPS // 2]
        return float((pairs[:, 0] % NUM_GROUPS == pairs[:, 1] % NUM_GROUPS).mean())

    texts, train, _ = users
    assert tells_apart(fitted[2]) > 0.9
    assert tells_apart(fitted[0].encode_raw(texts, train)) < 0.75


def test_new_users_get_an_index_from_texts_alone_without_collapse(
    users: tuple[np.ndarray, Sequences, np.ndarray], fitted: tuple[UserIndexer, np.ndarray, np.ndarray]
) -> None:
    indexer, codes, raw = fitted
    texts, train, _ = users
    new = indexer.encode_raw(texts, train)
    assert all(perplexity(new[:, level]) >= 0.5 * perplexity(raw[:, level]) for level in range(3))
    named = indexer.encode_users(texts, train.select(np.arange(50)), taken=codes)
    assert len(np.unique(np.concatenate([codes, named]), axis=0)) == 450


def test_codes_of_the_fit_come_back_alone_and_in_company(
    users: tuple[np.ndarray, Sequences, np.ndarray], fitted: tuple[UserIndexer, np.ndarray, np.ndarray]
) -> None:
    texts, train, behaviour = users
    assert fitted[0].encode_raw(texts, train, behaviour).tolist() == fitted[2].tolist()
    rows = np.array([7])
    assert fitted[0].encode_raw(texts, train.select(rows), behaviour[rows]).tolist() == fitted[2][rows].tolist()


def test_saved_and_loaded_indexers_agree_bit_for_bit(
    users: tuple[np.ndarray, Sequences, np.ndarray],
    fitted: tuple[UserIndexer, np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    fitted[0].save(tmp_path / "users")
    loaded = UserIndexer.load(tmp_path / "users")
    assert loaded.config == CONFIG
    for behaviour in (users[2], None):
        expected = fitted[0].latents(users[0], users[1], behaviour)
        assert np.array_equal(loaded.latents(users[0], users[1], behaviour), expected)
    assert loaded.encode_raw(*users).tolist() == fitted[2].tolist()
    (tmp_path / "users" / "user_indexer.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="cannot read the user indexer"):
        UserIndexer.load(tmp_path / "users")


def test_arrays_that_do_not_fit_the_config_are_refused(
    fitted: tuple[UserIndexer, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    fitted[0].save(tmp_path)
    file = tmp_path / "user_indexer.safetensors"
    arrays = load_file(file)
    for change, message in (
        ({"codebook.1": arrays["codebook.1"][:5].copy()}, r"codebook\.1 has shape \[5, 8\]"),
        ({"codebook.1": None}, r"lacks codebook\.1"),
        ({"codebook.2": None}, "2 codebooks, but its config needs 3"),
        ({"codebook.0": np.full((16, 8), np.nan, np.float32)}, r"codebook\.0 holds NaN"),
        ({"network.query.weight": np.full((24, 16), np.nan)}, r"network\.query\.weight holds NaN"),
        ({"network.norm.bias": None}, r"lacks network\.norm\.bias"),
        ({"network.value.weight": np.zeros((2, 2))}, r"network\.value\.weight has shape"),
        ({"text_mean": np.full(24, np.nan)}, "text_mean holds NaN"),
        ({"scales": np.ones(3)}, "scales has shape"),
        ({"scales": None}, "scales"),
    ):
        save_file({name: array for name, array in (arrays | change).items() if array is not None}, file)
        with pytest.raises(ArtifactError, match=message):
            UserIndexer.load(tmp_path)


def test_the_package_offers_the_indexer_without_importing_torch_for_it() -> None:
    assert (tokenizer_package.UserIndexer, tokenizer_package.spectral_users) == (UserIndexer, spectral_users)
    assert tokenizer_package.UserIndexerConfig is UserIndexerConfig
    with pytest.raises(AttributeError, match="no attribute 'UserIndexers'"):
        tokenizer_package.UserIndexers  # noqa: B018
    code = "import sys, recsys.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_seed_gives_the_same_index_and_leaves_the_random_state(
    users: tuple[np.ndarray, Sequences, np.ndarray],
) -> None:
    config = CONFIG.model_copy(update={"warmup_steps": 5, "steps": 10})
    before = torch.random.get_rng_state()
    first, again = (UserIndexer(config).fit(*users).codes for _ in range(2))
    assert first.tolist() == again.tolist()
    assert torch.random.get_rng_state().equal(before)
    other = UserIndexer(config.model_copy(update={"seed": 1})).fit(*users).codes
    assert first.tolist() != other.tolist()


def test_a_level_that_counts_is_kept_with_the_indexer(
    users: tuple[np.ndarray, Sequences, np.ndarray], tmp_path: Path
) -> None:
    indexer = UserIndexer(CONFIG.model_copy(update={"warmup_steps": 5, "steps": 10, "collisions": "extra_level"}))
    ids = indexer.fit(*users)
    assert ids.ordinal
    indexer.save(tmp_path / "users")
    assert UserIndexer.load(tmp_path / "users").codebook_sizes == ids.codebook_sizes


def test_the_latest_texts_are_read() -> None:
    rows, inside = latest_texts(Sequences.from_lists([[1, 2, 3], [4]]), 2)
    assert rows.tolist() == [[2, 3], [4, 0]]
    assert inside.tolist() == [[True, True], [True, False]]
    texts = torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]]])
    assert mean_texts(texts, torch.from_numpy(inside)).tolist() == [[2.0], [5.0]]


def test_spectral_users_are_weighted_means_of_length_one() -> None:
    train = Sequences.from_lists([[0, 1], [0, 1], [2, 3], [4]])
    vectors = spectral_users(train, 5, dim=3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert abs(vectors[0] @ vectors[1] - 1) < 1e-5
    assert abs(vectors[0] @ vectors[2]) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": Sequences.from_lists([[0], []])}, "texts: 1 of 2 users have none"),
        ({"texts": Sequences.from_lists([[0]])}, "texts has 1 users, behaviour has 2 rows"),
        ({"texts": Sequences.from_lists([[0], [3]])}, "texts names row 3, text_vectors has 3 rows"),
        ({"behaviour": np.full((2, 4), np.nan, np.float32)}, "behaviour: .*NaN"),
        ({"text_vectors": np.full((3, 4), np.nan, np.float32)}, "text_vectors: .*NaN"),
    ],
)
def test_impossible_input_is_refused_with_the_field_that_is_wrong(change: dict[str, object], message: str) -> None:
    good = {
        "text_vectors": np.ones((3, 4), np.float32),
        "texts": Sequences.from_lists([[0], [1, 2]]),
        "behaviour": np.ones((2, 4), np.float32),
    }
    with pytest.raises(DataError, match=message):
        UserIndexer(CONFIG).fit(**{**good, **change})  # type: ignore[arg-type]


def test_an_indexer_that_was_not_fitted_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has not been fitted"):
        UserIndexer(CONFIG).save(tmp_path / "users")
