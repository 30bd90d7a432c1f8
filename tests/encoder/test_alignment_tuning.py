"""Tuning on planted data: what it learns, on which weights, and that it is repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_topics import ITEMS_PER_TOPIC, NUM_TOPICS, planted
from sentence_transformers import SentenceTransformer

from recsys.data import Sequences
from recsys.encoder import EncoderConfig, TextEncoder
from recsys.encoder.alignment.config import AlignmentConfig, ProfileConfig
from recsys.encoder.alignment.profiles import item_profiles, user_texts
from recsys.encoder.alignment.retrieval import alignment_gap, mean_item_vectors, retrieval_recall
from recsys.encoder.alignment.towers import apply_head, trainable_parameters
from recsys.encoder.alignment.tuning import TuningReport, tune_encoder
from recsys.encoder.text import item_texts
from recsys.errors import ConfigError, DataError

HEAD = AlignmentConfig(steps=60, batch_size=32, evaluate_every=20, head_learning_rate=1e-2, temperature=0.1)
LAYERS = HEAD.model_copy(
    update={"trainable_layers": 1, "steps": 12, "learning_rate": 3e-3, "evaluate_every": 6, "holdout_users": 20}
)


def encode(model: Path, texts: list[str]) -> np.ndarray:
    return TextEncoder(EncoderConfig(model=str(model))).encode(texts)


def zero_shot(model: Path, seed: int, view: str = "items") -> tuple[float, float, float]:
    """Recall@8 of each user's last item, gap and AUC, on items and users that tuning never saw."""
    catalog, histories = planted(seed, 60)
    pasts = Sequences.from_lists([history[:-1] for history in histories])
    targets = np.array([history[-1] for history in histories])
    items = encode(model, item_texts(catalog, EncoderConfig()))
    if view == "items":
        users = mean_item_vectors(items, pasts)
    else:
        users = encode(model, user_texts(catalog, pasts, ProfileConfig()))
    other_topic = (targets + ITEMS_PER_TOPIC * (1 + targets % (NUM_TOPICS - 1))) % catalog.num_items
    gap = alignment_gap(users, items, targets, other_topic)
    return retrieval_recall(users, items, targets, (8,), seen=pasts)[8], gap.gap, gap.auc


@pytest.fixture(scope="module")
def tuned_head(word_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuningReport]:
    root = tmp_path_factory.mktemp("head")
    catalog, train = planted(0)
    report = tune_encoder(EncoderConfig(model=str(word_model_directory)), catalog, train, HEAD, root / "out", root)
    return root / "out", report


def test_tuned_head_ranks_a_catalogue_and_users_it_has_never_seen(
    word_model_directory: Path, tuned_head: tuple[Path, TuningReport]
) -> None:
    base_recall, base_gap, _ = zero_shot(word_model_directory, 1)
    recall, gap, auc = zero_shot(tuned_head[0], 1)
    random = 8 / (NUM_TOPICS * ITEMS_PER_TOPIC - 4)
    assert recall >= 3 * random
    assert recall > base_recall + 0.1
    assert gap >= 0.3 > base_gap
    assert auc >= 0.7


def test_shuffled_interactions_lose_the_gain(
    word_model_directory: Path, tuned_head: tuple[Path, TuningReport], tmp_path: Path
) -> None:
    catalog, train = planted(0)
    items = np.random.default_rng(0).permutation(train.items)
    shuffled = Sequences(users=train.users, offsets=train.offsets, items=items)
    encoder = EncoderConfig(model=str(word_model_directory))
    report = tune_encoder(encoder, catalog, shuffled, HEAD, tmp_path / "out", tmp_path)
    base, right = (zero_shot(model, 1)[0] for model in (word_model_directory, tuned_head[0]))
    assert zero_shot(tmp_path / "out", 1)[0] < base + 0.3 * (right - base)
    assert report.best_recall - report.base_recall < 0.5 * (tuned_head[1].best_recall - tuned_head[1].base_recall)


def test_report_says_what_the_held_out_items_said(tuned_head: tuple[Path, TuningReport]) -> None:
    directory, report = tuned_head
    assert (report.holdout_users, report.holdout_candidates) == (24, NUM_TOPICS * ITEMS_PER_TOPIC)
    assert report.best_step in {20, 40, 60}
    assert report.best_recall > report.base_recall
    facts = json.loads((directory / "alignment.json").read_text())
    assert facts["report"]["best_recall"] == report.best_recall
    assert AlignmentConfig.model_validate(facts["config"]) == HEAD


def test_output_is_a_plain_sentence_encoder_with_its_own_token_limit(
    word_model_directory: Path, tuned_head: tuple[Path, TuningReport]
) -> None:
    model = SentenceTransformer(str(tuned_head[0]), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]
    assert model.get_max_seq_length() == SentenceTransformer(str(word_model_directory)).get_max_seq_length()
    vectors = encode(tuned_head[0], ["axep bowp", "something new"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not {file.suffix for file in tuned_head[0].rglob("*")} & {".bin", ".pkl", ".pt"}


def test_equal_seeds_give_equal_files_and_leave_global_randomness_alone(
    word_model_directory: Path, tuned_head: tuple[Path, TuningReport], tmp_path: Path
) -> None:
    catalog, train = planted(0)
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    tune_encoder(EncoderConfig(model=str(word_model_directory)), catalog, train, HEAD, tmp_path / "again", tmp_path)
    assert torch.equal(torch.rand(2), expected)
    for file in sorted(tuned_head[0].rglob("*.*")):
        if file.is_file():
            again = tmp_path / "again" / file.relative_to(tuned_head[0])
            assert again.read_bytes() == file.read_bytes(), file.name
    other = HEAD.model_copy(update={"seed": 1})
    tune_encoder(EncoderConfig(model=str(word_model_directory)), catalog, train, other, tmp_path / "other", tmp_path)
    name = "3_Dense/model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() != (tmp_path / "again" / name).read_bytes()


def test_head_over_cached_vectors_is_what_the_saved_model_does(
    word_model_directory: Path, tuned_head: tuple[Path, TuningReport]
) -> None:
    texts = ["axep bowp big", "cupq dyeq new"]
    base = torch.from_numpy(encode(word_model_directory, texts))
    head = SentenceTransformer(str(tuned_head[0]), device="cpu")[3].linear
    expected = torch.nn.functional.normalize(base + head(base), dim=1).detach().numpy()
    np.testing.assert_allclose(encode(tuned_head[0], texts), expected, atol=1e-5)
    np.testing.assert_allclose(apply_head(tuned_head[0], base.numpy()), expected, atol=1e-5)


def test_profile_view_tunes_users_as_texts(word_model_directory: Path, tmp_path: Path) -> None:
    catalog, train = planted(0)
    config = HEAD.model_copy(update={"user_view": "both", "profiles": ProfileConfig(variants=2)})
    encoder = EncoderConfig(model=str(word_model_directory))
    report = tune_encoder(encoder, catalog, train, config, tmp_path / "out", tmp_path)
    assert report.best_recall > report.base_recall
    base, tuned = (zero_shot(model, 1, "profile") for model in (word_model_directory, tmp_path / "out"))
    assert tuned[0] > base[0] + 0.1
    assert tuned[1] >= 0.3
    assert tuned[2] >= 0.7


def test_phrasings_lower_the_variance_over_unseen_phrasings(word_model_directory: Path, tmp_path: Path) -> None:
    catalog, train = planted(0)
    unseen, _ = planted(1)
    encoder = EncoderConfig(model=str(word_model_directory))
    spread = {}
    for variants in (1, 4):
        config = HEAD.model_copy(update={"profiles": ProfileConfig(variants=variants)})
        tune_encoder(encoder, catalog, train, config, tmp_path / str(variants), tmp_path)
        texts = [item_profiles(unseen, ProfileConfig(), number, seed=9) for number in (5, 6, 7)]
        vectors = np.stack([encode(tmp_path / str(variants), variant) for variant in texts])
        spread[variants] = float(vectors.var(axis=0).sum(axis=1).mean() / vectors.mean(axis=0).var(axis=0).sum())
    assert spread[4] < 0.9 * spread[1]


def test_mined_negatives_are_learned_from(word_model_directory: Path, tmp_path: Path) -> None:
    catalog, train = planted(0)
    config = HEAD.model_copy(update={"hard_negatives": 2, "hard_negative_pool": 10, "logq": False})
    encoder = EncoderConfig(model=str(word_model_directory))
    report = tune_encoder(encoder, catalog, train, config, tmp_path / "out", tmp_path)
    assert report.best_recall > report.base_recall
    assert zero_shot(tmp_path / "out", 1)[0] > zero_shot(word_model_directory, 1)[0] + 0.1


def test_only_the_top_layers_and_the_head_change(word_model_directory: Path, tmp_path: Path) -> None:
    catalog, train = planted(0)
    config = LAYERS.model_copy(update={"user_view": "profile", "mlm_weight": 0.1})
    encoder = EncoderConfig(model=str(word_model_directory))
    report = tune_encoder(encoder, catalog, train, config, tmp_path / "out", tmp_path)
    assert report.best_recall > report.base_recall
    before = SentenceTransformer(str(word_model_directory), device="cpu")[0].model.state_dict()
    after = SentenceTransformer(str(tmp_path / "out"), device="cpu")[0].model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("encoder.layer.1." in name for name in changed)


def test_trained_layers_are_reproducible_and_carry_over_to_new_items(
    word_model_directory: Path, tmp_path: Path
) -> None:
    catalog, train = planted(0)
    encoder = EncoderConfig(model=str(word_model_directory))
    for name in ("a", "b"):
        tune_encoder(encoder, catalog, train, LAYERS, tmp_path / name, tmp_path)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert zero_shot(tmp_path / "a", 1)[0] > zero_shot(word_model_directory, 1)[0] + 0.1


def test_chunks_do_not_change_what_is_learned(word_model_directory: Path, tmp_path: Path) -> None:
    """Without dropout: its random numbers are drawn chunk by chunk."""
    model = SentenceTransformer(str(word_model_directory), device="cpu")
    model[0].model.config.hidden_dropout_prob = model[0].model.config.attention_probs_dropout_prob = 0.0
    model.save(str(tmp_path / "dry"))
    catalog, train = planted(0)
    encoder = EncoderConfig(model=str(tmp_path / "dry"))
    vectors = []
    for chunk_size in (8, 1000):
        config = LAYERS.model_copy(update={"chunk_size": chunk_size})
        report = tune_encoder(encoder, catalog, train, config, tmp_path / str(chunk_size), tmp_path)
        assert report.best_step > 0
        vectors.append(encode(tmp_path / str(chunk_size), item_texts(catalog, encoder)))
    # Vectors, not weights: Adam's first step follows the sign even of a gradient that is rounding.
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-2)
    base = encode(tmp_path / "dry", item_texts(catalog, encoder))
    assert np.abs(vectors[0] - base).max() > 0.2


def test_masked_words_change_little_and_stay_stable(word_model_directory: Path, tmp_path: Path) -> None:
    catalog, train = planted(0)
    encoder = EncoderConfig(model=str(word_model_directory))
    recall = {}
    for weight in (0.0, 0.1):
        config = LAYERS.model_copy(update={"mlm_weight": weight})
        tune_encoder(encoder, catalog, train, config, tmp_path / str(weight), tmp_path)
        recall[weight] = zero_shot(tmp_path / str(weight), 1)[0]
    assert abs(recall[0.0] - recall[0.1]) < 0.25
    assert min(recall.values()) > zero_shot(word_model_directory, 1)[0]


def test_nothing_better_than_the_base_saves_the_base(
    word_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, train = planted(0)
    config = HEAD.model_copy(update={"steps": 1, "head_learning_rate": 1e-12})
    encoder = EncoderConfig(model=str(word_model_directory))
    report = tune_encoder(encoder, catalog, train, config, tmp_path / "out", tmp_path)
    assert report.best_step == 0
    assert report.best_recall == report.base_recall
    texts = item_texts(catalog, encoder)
    np.testing.assert_allclose(encode(tmp_path / "out", texts), encode(word_model_directory, texts), atol=1e-6)
    assert "no step better than the encoder as it was" in capsys.readouterr().err


def test_tuned_model_can_be_tuned_again(tuned_head: tuple[Path, TuningReport], tmp_path: Path) -> None:
    catalog, train = planted(2)
    report = tune_encoder(EncoderConfig(model=str(tuned_head[0])), catalog, train, HEAD, tmp_path / "out", tmp_path)
    assert report.best_recall >= report.base_recall
    assert encode(tmp_path / "out", ["axep"]).shape == (1, 32)


def test_impossible_requests_are_one_line_errors(word_model_directory: Path, tmp_path: Path) -> None:
    catalog, train = planted(0)
    encoder = EncoderConfig(model=str(word_model_directory))
    config = HEAD.model_copy(update={"trainable_layers": 9})
    with pytest.raises(ConfigError, match="trainable_layers is 9, but the encoder has 2 layers"):
        tune_encoder(encoder, catalog, train, config, tmp_path / "out", tmp_path)
    with pytest.raises(DataError, match="train holds item 100, but the catalogue has 72 items"):
        tune_encoder(encoder, catalog, Sequences.from_lists([[1, 100]]), HEAD, tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="mlm_weight above 0 needs trainable_layers above 0"):
        AlignmentConfig(mlm_weight=0.1)
    hot = HEAD.model_copy(update={"temperature": 1e-40})
    with pytest.raises(DataError, match="the loss is nan at step"):
        tune_encoder(encoder, catalog, train, hot, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_layers_that_cannot_be_told_are_an_error(word_model_directory: Path) -> None:
    model = SentenceTransformer(str(word_model_directory), device="cpu")
    every = {id(parameter) for parameter in trainable_parameters(model, None)}
    top = {id(parameter) for parameter in trainable_parameters(model, 1)}
    assert top < every == {id(parameter) for parameter in model[0].model.parameters()}
    model[0].model.config.num_hidden_layers = 3
    with pytest.raises(ConfigError, match="trainable_layers is 1, but the layers of bert cannot be told; set it to 0"):
        trainable_parameters(model, 1)


def test_encoder_without_a_transformer_has_no_layers_to_train() -> None:
    model = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    with pytest.raises(ConfigError, match="the encoder has no transformer; set it to 0"):
        trainable_parameters(model, 1)
