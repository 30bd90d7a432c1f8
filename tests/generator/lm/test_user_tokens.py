"""Tokens of users: read in training as in service, from a history alone, none for nobody; saved with the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from padding import padded
from random_codes import random_codes
from scored_catalogue import score_catalogue
from tiny_lm import save_tiny_lm

from recsys.data.sequences import Sequences
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.lm.examples import Example, Items, UserTokens, for_user
from recsys.generator.lm.initial_rows import ground_rows, ground_users
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.rows import rectangle
from recsys.generator.lm.user_rows import UserRows
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.tokenizer.user_config import UserIndexerConfig
from recsys.tokenizer.user_histories import HistoryIndexer

SIZES, NUM_ITEMS = (4, 8, 8), 40
VECTORS = np.random.default_rng(1).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
SHAPES = pytest.mark.parametrize("shape", ["flat", "nested"])


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def indexer() -> HistoryIndexer:
    rng = np.random.default_rng(0)
    train = Sequences.from_lists([rng.permutation(NUM_ITEMS)[:5] for _ in range(60)])
    config = UserIndexerConfig(levels=2, codebook_size=8, code_dim=4, hidden=(8,), warmup_steps=10, steps=20)
    return HistoryIndexer.fit(config, VECTORS, train)[0]


def make(source: Path, indexer: HistoryIndexer | None, shape: str = "flat") -> GenerativeRecommender:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": shape, "max_history": 8, "lm": {"name": str(source), "tuning": "lora", "lora": {"rank": 2}}}
        )
    )
    codes = random_codes(NUM_ITEMS, SIZES)
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, None, users=indexer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return GenerativeRecommender(config, codes, SIZES, None, model)


def users_of(recommender: GenerativeRecommender) -> UserRows:
    users = recommender.model.users
    assert users is not None
    return users


@SHAPES
def test_a_served_history_is_read_as_it_is_taught(tiny_lm: Path, indexer: HistoryIndexer, shape: str) -> None:
    recommender = make(tiny_lm, indexer, shape)
    language = ItemLanguage(recommender.model)
    histories = [[3, 7, 1], [5], []]
    lists = recommender.recommend(Sequences.from_lists(histories), k=NUM_ITEMS)
    instruction = language.backbone.templates.next_item_instruction
    for history, items, scores in zip(histories, lists.items, lists.scores, strict=True):
        prompt = (instruction, Items(tuple(history))) if history else (instruction,)
        prompt = language.of_user(prompt, np.array(history, dtype=np.int64))
        assert isinstance(prompt[0], UserTokens) == bool(history)
        example = Example(task="next_item", prompt=prompt, response=(Items((int(items[0]),)),))
        written = language.writer(128).write(example)
        taught = language.target_log_probs(rectangle([written], [[0]])).items
        np.testing.assert_allclose(taught.detach().numpy(), scores[:1], atol=1e-4)


@SHAPES
def test_decoding_finds_what_scoring_the_whole_catalogue_finds(
    tiny_lm: Path, indexer: HistoryIndexer, shape: str
) -> None:
    recommender = make(tiny_lm, indexer, shape)
    histories = Sequences.from_lists([[3, 7, 1], [], [9]])
    found = recommender.recommend(histories, k=NUM_ITEMS)
    for history, items, scores in zip(histories, found.items, found.scores, strict=True):
        np.testing.assert_allclose(score_catalogue(recommender, history)[items], scores, atol=1e-4)


@SHAPES
def test_who_the_user_is_reaches_the_list_and_nobody_has_no_tokens(
    tiny_lm: Path, indexer: HistoryIndexer, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = make(tiny_lm, indexer, shape)
    histories = Sequences.from_lists([[3, 7, 1], [20, 21, 22], []])
    before = recommender.recommend(histories, k=5)
    codes = indexer.encode(histories)
    assert not np.array_equal(codes[0], codes[1])
    assert users_of(recommender).of([]) is None
    swapped = {3: codes[1], 20: codes[0]}
    nobody = np.full(2, -1)
    monkeypatch.setattr(
        indexer,
        "encode",
        lambda asked: np.stack([swapped[int(row[0])] if len(row) else nobody for row in asked]),
    )
    after = recommender.recommend(histories, k=5)
    assert np.abs(before.scores[:2] - after.scores[:2]).max(axis=1).min() > 1e-3
    np.testing.assert_allclose(after.scores[2], before.scores[2], atol=1e-5)


def test_nobody_is_read_as_by_a_model_without_users(tiny_lm: Path, indexer: HistoryIndexer) -> None:
    language = ItemLanguage(make(tiny_lm, indexer).model)
    instruction = language.backbone.templates.next_item_instruction
    items, lengths = padded([np.array([], dtype=np.int64), np.array([3, 4])])
    read = language.model.encode(items, lengths)
    torch.testing.assert_close(read.hidden[:1], language.read([(instruction,)]).hidden, atol=1e-5, rtol=1e-4)
    assert int(read.lengths[0]) == len(language.backbone.text_tokens(instruction))


def test_a_session_goes_on_only_while_the_user_is_the_same(tiny_lm: Path, indexer: HistoryIndexer) -> None:
    recommender = make(tiny_lm, indexer)
    walk = [3, 7, 1, 20, 21, 22]
    users = users_of(recommender)
    changes = [users.of(walk[:size]) != users.of(walk[: size + 1]) for size in range(1, 6)]
    assert any(changes)
    for size in range(1, 7):
        history = Sequences.from_lists([walk[:size]])
        kept = recommender.recommend(history, k=5, sessions=["s"])
        np.testing.assert_allclose(kept.scores, recommender.recommend(history, k=5).scores, atol=1e-4)
    counts = recommender.sessions.counts
    assert (counts.misses, counts.extensions) == (1 + sum(changes), 5 - sum(changes))


@SHAPES
def test_what_is_saved_is_what_is_loaded_and_new_items_name_users(
    tiny_lm: Path, indexer: HistoryIndexer, shape: str, tmp_path: Path
) -> None:
    recommender = make(tiny_lm, indexer, shape)
    histories = Sequences.from_lists([[3, 7, 1], []])
    recommender.save(tmp_path)
    before = recommender.recommend(histories, k=10)
    loaded = GenerativeRecommender.load(tmp_path, recommender.codes, SIZES, VECTORS)
    np.testing.assert_array_equal(loaded.recommend(histories, k=10).items, before.items)
    codes = random_codes(60, SIZES)
    codes = np.concatenate([recommender.codes, codes[~(codes[:, None] == recommender.codes).all(-1).any(1)]])[:45]
    wide = np.concatenate([VECTORS, np.ones((len(codes) - NUM_ITEMS, 6), dtype=np.float32)])
    grown = loaded.with_catalog(codes, wide, known=np.arange(NUM_ITEMS))
    np.testing.assert_array_equal(users_of(grown).of([3, 7, 1]).codes, users_of(loaded).of([3, 7, 1]).codes)  # type: ignore[union-attr]
    assert (grown.recommend(Sequences.from_lists([[NUM_ITEMS]]), k=5).items >= 0).all()
    with pytest.raises(DataError, match="the codes of users"):
        loaded.with_catalog(codes, None, known=np.arange(NUM_ITEMS))
    with pytest.raises(ArtifactError, match="the codes of users"):
        GenerativeRecommender.load(tmp_path, recommender.codes, SIZES, None)


def test_user_rows_begin_at_the_codebooks_geometry(tiny_lm: Path, indexer: HistoryIndexer) -> None:
    model = make(tiny_lm, indexer).model
    ground_rows(model, random_codes(NUM_ITEMS, SIZES), SIZES, VECTORS, seed=0)
    ground_users(model, seed=1)
    assert model.users is not None
    book, size = indexer.codebooks[0].astype(np.float64), indexer.codebook_sizes[0]
    rows = model.users.embedding.weight[:size].detach().double()
    ratio = torch.pdist(rows).numpy() / torch.pdist(torch.from_numpy(book)).numpy()
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    with pytest.raises(ValueError, match="no rows of users"):
        ground_users(make(tiny_lm, None).model, seed=1)


def test_rows_of_users_are_learned(tiny_lm: Path, indexer: HistoryIndexer) -> None:
    language = ItemLanguage(make(tiny_lm, indexer).model)
    prompt = for_user(("Preference:",), UserTokens((1, 2)))
    written = language.writer(64).write(Example(task="user_to_preference", prompt=prompt, response=(" the fox",)))
    assert not written.is_target[: len(prompt)].any()
    language.target_log_probs(rectangle([written], [[0]])).text.sum().backward()
    assert language.model.users is not None
    gradient = language.model.users.embedding.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero().squeeze(1).tolist() == [1, indexer.codebook_sizes[0] + 2]


def test_a_long_sequence_is_cut_behind_its_user(tiny_lm: Path, indexer: HistoryIndexer) -> None:
    language = ItemLanguage(make(tiny_lm, indexer).model)
    prompt = for_user(("a:", Items(tuple(range(20)))), UserTokens((1, 2)))
    written = language.writer(20).write(Example(task="next_item", prompt=prompt, response=(Items((21,)),)))
    assert written.items[written.items >= 0].tolist() == [15, 16, 17, 18, 19, 21]
    numbers = [language.num_words + 1, language.num_words + indexer.codebook_sizes[0] + 2]
    assert written.tokens[:2].tolist() == numbers
    assert len(written) == 20


def test_users_need_a_language_model_that_has_them(tiny_lm: Path, indexer: HistoryIndexer) -> None:
    with pytest.raises(ConfigError, match=r"set generator\.model\.lm"):
        build_model(GeneratorConfig(), random_codes(NUM_ITEMS, SIZES), SIZES, None, users=indexer)
    language = ItemLanguage(make(tiny_lm, None).model)
    with pytest.raises(ConfigError, match="no semantic IDs of users"):
        language.read([for_user(("a",), UserTokens((1, 2)))])
    assert language.of_user(("a",), np.array([3])) == ("a",)
