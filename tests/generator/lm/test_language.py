"""A language model as the body: packed equals unpacked, probabilities sum to 1, what is saved is what is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from padding import padded
from random_codes import random_codes
from tiny_lm import save_tiny_lm
from transformers import AutoModelForCausalLM, GraniteConfig, OPTConfig

from recsys.data.sequences import Sequences
from recsys.errors import AssetError, ConfigError
from recsys.generator.config import GeneratorConfig, LanguageModelConfig, ModelConfig
from recsys.generator.lm.backbone import Backbone, load_backbone
from recsys.generator.lm.examples import Example, Items
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.rows import Written, pack, rectangle
from recsys.generator.recommender import GenerativeRecommender, build_model

SIZES = (4, 8, 8)
_TINY = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EXAMPLES = [
    Example(task="next_item", prompt=("a user chose:",), response=(Items((3, 7, 1, 3)),)),
    Example(task="title_to_item", prompt=("title: fox\nitem:",), response=(Items((5,)),)),
    Example(task="item_to_title", prompt=("item", Items((9,)), " is called"), response=(" the lazy dog",)),
    Example(task="reasoning", prompt=(Items((2, 8)), "?"), response=(" because of the fox: ", Items((4,)))),
]


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"))


def make(source: Path, shape: str = "flat", tuning: str = "lora", num_items: int = 40) -> GenerativeRecommender:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": shape, "max_history": 8, "lm": {"name": str(source), "tuning": tuning, "lora": {"rank": 2}}}
        )
    )
    codes = random_codes(num_items, SIZES)
    vectors = np.random.default_rng(1).normal(size=(num_items, 6)).astype(np.float32)
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, vectors)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return GenerativeRecommender(config, codes, SIZES, vectors, model)


def written(language: ItemLanguage) -> list[Written]:
    return [language.writer(128).write(example) for example in EXAMPLES]


@pytest.mark.parametrize("shape", ["flat", "nested"])
def test_packed_sequences_have_the_likelihoods_that_they_have_alone(tiny_lm: Path, shape: str) -> None:
    language = ItemLanguage(make(tiny_lm, shape).model)
    sequences = written(language)
    alone = [language.target_log_probs(rectangle(sequences, [[index]])) for index in range(len(sequences))]
    lines = [[2, 0], [3, 1]]
    together = language.target_log_probs(rectangle(sequences, lines))
    order = [index for line in lines for index in line]
    torch.testing.assert_close(together.text, torch.cat([alone[index].text for index in order]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.items, torch.cat([alone[index].items for index in order]), atol=1e-4, rtol=1e-4)
    assert together.item_targets.tolist() == [3, 7, 1, 3, 4, 5]
    assert len(together.text) == sum(int((sequence.is_target & (sequence.tokens >= 0)).sum()) for sequence in sequences)


@pytest.mark.parametrize("shape", ["flat", "nested"])
def test_items_of_a_sequence_have_the_likelihoods_of_the_history_path(tiny_lm: Path, shape: str) -> None:
    recommender = make(tiny_lm, shape)
    language = ItemLanguage(recommender.model)
    instruction = recommender.model.instruction.tokens.tolist()
    prompt = language.backbone.text(instruction)
    example = Example(task="next_item", prompt=(prompt,), response=(Items((3, 7, 1)),))
    packed = rectangle([language.writer(128).write(example)], [[0]])
    direct = recommender.model.target_log_probs(*padded([np.array([3, 7, 1])]))
    torch.testing.assert_close(language.target_log_probs(packed).items, direct, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["flat", "nested"])
def test_probabilities_of_all_items_sum_to_one_after_any_prompt(tiny_lm: Path, shape: str) -> None:
    recommender = make(tiny_lm, shape)
    found = recommender.recommend(Sequences.from_lists([[1, 2], []]), k=40)
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)
    found = recommender.complete([("title: fox\nitem:",), ("dog", Items((3,)), " then")], k=40)
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)


def test_completing_a_prompt_equals_scoring_each_item_as_its_response(tiny_lm: Path) -> None:
    recommender = make(tiny_lm)
    language = ItemLanguage(recommender.model)
    prompt = ("title: fox\nitem:",)
    found = recommender.complete([prompt], k=10)
    sequences = [
        language.writer(128).write(Example(task="t", prompt=prompt, response=(Items((item,)),))) for item in range(40)
    ]
    with torch.no_grad():
        exact = language.target_log_probs(rectangle(sequences, [[index] for index in range(40)])).items.numpy()
    np.testing.assert_array_equal(found.items[0], np.argsort(-exact)[:10])
    np.testing.assert_allclose(found.scores[0], np.sort(exact)[::-1][:10], atol=1e-4)


def test_only_adapters_and_what_the_catalogue_brings_are_trained(tiny_lm: Path) -> None:
    model = make(tiny_lm).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"embedding.weight", "heads.0.weight", "heads.2.bias"} < trained
    inside = {name for name in trained if name.startswith("body.")}
    assert inside
    assert all("lora_" in name for name in inside)
    full = make(tiny_lm, tuning="full").model
    assert all(parameter.requires_grad for parameter in full.parameters())
    frozen = {
        name for name, parameter in make(tiny_lm, tuning="frozen").model.named_parameters() if parameter.requires_grad
    }
    assert frozen == trained - inside


@pytest.mark.parametrize("shape", ["flat", "nested"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_answers_like_the_one_with_adapters(tmp_path: Path, shape: str, tied: bool) -> None:
    recommender = make(save_tiny_lm(tmp_path / "lm", tied=tied), shape)
    prompts = [("title: fox\nitem:",)]
    histories = Sequences.from_lists([[1, 2, 3], []])
    before = recommender.recommend(histories, k=20), recommender.complete(prompts, k=5)
    (tmp_path / "saved").mkdir()
    recommender.save(tmp_path / "saved")
    loaded = GenerativeRecommender.load(tmp_path / "saved", recommender.codes, SIZES, recommender.item_vectors)
    assert isinstance(loaded.model.body, Backbone)
    after = loaded.recommend(histories, k=20), loaded.complete(prompts, k=5)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old.items, new.items)
        np.testing.assert_allclose(old.scores, new.scores, atol=1e-4)
    assert {path.suffix for path in (tmp_path / "saved").rglob("*.*")} <= {".json", ".safetensors"}


def test_a_changed_catalogue_keeps_the_language(tiny_lm: Path) -> None:
    recommender = make(tiny_lm)
    grown = recommender.with_catalog(
        random_codes(60, SIZES),
        np.zeros((60, 6), dtype=np.float32),
        known=np.full(40, -1),
    )
    assert grown.model.body is recommender.model.body
    assert grown.complete([("title: fox\nitem:",)], k=60).items.max() == 59


def test_lines_are_packed_without_overflow_and_with_little_padding() -> None:
    rng = np.random.default_rng(0)
    sequences = [
        Written(tokens=np.zeros(n, dtype=np.int64), items=np.full(n, -1), is_target=np.zeros(n, dtype=bool))
        for n in rng.integers(1, 60, size=300)
    ]
    lines = pack(sequences, 128)
    assert sorted(index for line in lines for index in line) == list(range(300))
    used = [sum(len(sequences[index]) for index in line) for line in lines]
    assert max(used) <= 128
    assert sum(used) / (128 * len(lines)) > 0.95
    with pytest.raises(ValueError, match="line_rows=10 is shorter than a sequence"):
        pack(sequences, 10)


def test_what_is_too_long_loses_the_beginning_of_its_prompt_first(tiny_lm: Path) -> None:
    writer = ItemLanguage(make(tiny_lm).model).writer(8)
    answered = writer.write(Example(task="t", prompt=(Items((1, 2)), "?"), response=(Items((3,)),)))
    assert answered.items[answered.items >= 0].tolist() == [2, 3]
    assert answered.items[answered.is_target].tolist() == [3]
    long = writer.write(Example(task="next_item", prompt=("a",), response=(Items((3, 7, 1, 3)),)))
    assert long.items[long.items >= 0].tolist() == [3, 7]
    assert len(long) == 7


def test_rows_are_counted_without_padding(tiny_lm: Path) -> None:
    sequences = written(ItemLanguage(make(tiny_lm).model))
    assert rectangle(sequences, [[0, 2], [1], [3]]).num_rows == sum(map(len, sequences))


def test_prompts_that_do_not_fit_are_refused(tiny_lm: Path) -> None:
    recommender = make(tiny_lm)
    for prompts in ([], [()], [("fox " * 600,)]):
        with pytest.raises(ValueError, match="prompts must be one or more of 1 to 512 rows"):
            recommender.complete(prompts, k=1)


def test_models_that_cannot_be_packed_or_have_other_heads_are_refused(tmp_path: Path) -> None:
    save_tiny_lm(tmp_path / "llama")
    for config, what in (
        (OPTConfig(**_TINY, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64), "see each other"),
        (GraniteConfig(**_TINY, intermediate_size=16, logits_scaling=4.0), "text head"),
    ):
        model = AutoModelForCausalLM.from_config(config)
        source = tmp_path / config.model_type
        model.save_pretrained(source)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tmp_path / "llama" / name, source / name)
        with pytest.raises(AssetError, match=what):
            load_backbone(LanguageModelConfig(name=str(source)))


def test_mistakes_are_named(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"generator.model.lm.name '.*nothing' must be a causal language model"):
        load_backbone(LanguageModelConfig(name=str(tmp_path / "nothing")))
    config = GeneratorConfig(
        model=ModelConfig(shape="flat", max_history=400, lm=LanguageModelConfig(name=str(tiny_lm)))
    )
    with pytest.raises(ConfigError, match=r"max_history=400 takes \d+ positions, the language model reads 512"):
        build_model(config, random_codes(40, SIZES), SIZES, None)
