"""Both frozen recommenders against the slow and obvious way to the same probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_lm import save_tiny_lm

from recsys.errors import ConfigError
from recsys.generator import GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.generator.config import LanguageModelConfig
from recsys.generator.lm.backbone import load_backbone
from recsys.generator.lm.examples import Example, Items
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.rows import rectangle
from recsys.profile.cases import Case
from recsys.profile.profile import Profile, Statement
from recsys.profile.prompt import fitting_text, profile_prompt
from recsys.profile.recommender_judge import RecommenderJudge
from recsys.profile.title_judge import TitleJudge

TITLES = ["Fox", "Foxes", "The lazy dog", "Over", "Quick", "Brown Fox", "Title", "Items"]
CASE = Case(user=0, compressed=(0,), recent=(1, 2), candidates=np.array([[3, 0, 5], [4, 5, 6]]))


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"))


def mean_log_prob(judge_backbone, prompt: list[list[int]], title: str) -> float:
    tokens = judge_backbone.text_tokens(f" {title}\n")
    rows = torch.tensor([[token for part in prompt for token in part] + tokens])
    with torch.inference_mode():
        logits = judge_backbone.text_logits(judge_backbone(judge_backbone.text_embeddings(rows)))
    log_probs = logits.log_softmax(-1)[0]
    at = len(rows[0]) - len(tokens) - 1
    return sum(float(log_probs[at + step, token]) for step, token in enumerate(tokens)) / len(tokens)


def test_titles_scored_over_one_cache_are_titles_scored_one_by_one(lm: Path) -> None:
    backbone = load_backbone(LanguageModelConfig(name=str(lm)))
    found = TitleJudge(backbone, TITLES).log_probs(CASE, ["", "Likes the quick fox."])
    lately = backbone.text_tokens("Chosen lately:\n- Foxes\n- The lazy dog\n")
    for row, about in enumerate(["", "About this person: Likes the quick fox.\n"]):
        prompt = [lately, backbone.text_tokens(f"{about}Chosen next:\n-")]
        for target, candidates in enumerate(CASE.candidates):
            scores = np.array([mean_log_prob(backbone, prompt, TITLES[item]) for item in candidates])
            expected = scores - np.logaddexp.reduce(scores)
            np.testing.assert_allclose(found[row, target], expected, atol=1e-4)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_half_precision_judges_nearly_the_same(lm: Path) -> None:
    backbone = load_backbone(LanguageModelConfig(name=str(lm)))
    texts = ["", "Likes the quick fox."]
    exact = TitleJudge(backbone, TITLES).log_probs(CASE, texts)
    backbone.precision = torch.bfloat16
    half = TitleJudge(backbone, TITLES).log_probs(CASE, texts)
    np.testing.assert_allclose(half, exact, atol=0.02)
    assert not np.array_equal(half, exact)


def recommender(lm: Path | None, shape: str = "nested") -> GenerativeRecommender:
    index = np.arange(8)
    codes = np.stack([index // 4, index % 4], axis=1)
    body = {"lm": LanguageModelConfig(name=str(lm))} if lm else {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    model = ModelConfig.model_validate({"shape": shape, "max_history": 4, "text_input": False, **body})
    config = GeneratorConfig(model=model, beams=4)
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, (2, 4), None, build_model(config, codes, (2, 4), None))


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_decoded_candidate_has_the_probability_that_training_gives_it(lm: Path, shape: str) -> None:
    served = recommender(lm, shape)
    language = ItemLanguage.of(served.model)
    found = RecommenderJudge(served).log_probs(CASE, ["", "Likes the lazy dog."])
    for row, text in enumerate(["", "Likes the lazy dog."]):
        prompt = profile_prompt(language, text, CASE.recent)
        for item, value in zip(CASE.candidates.ravel(), found[row].ravel(), strict=True):
            example = Example(task="next_item", prompt=prompt, response=(Items((int(item),)),))
            written = language.writer(512).write(example)
            with torch.inference_mode():
                expected = language.target_log_probs(rectangle([written], [[0]])).items
            assert value == pytest.approx(float(expected), abs=1e-4)
    assert not np.allclose(found[0], found[1], atol=1e-4)


def test_without_a_profile_the_model_is_asked_as_it_was_taught(lm: Path) -> None:
    language = ItemLanguage.of(recommender(lm).model)
    instruction = language.backbone.templates.next_item_instruction
    assert profile_prompt(language, "", (1, 2)) == (instruction, Items((1, 2)))
    assert profile_prompt(language, "Likes foxes.", ()) == (f"Likes foxes.\n{instruction}",)


def test_a_recommender_that_knows_no_words_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generator\.model\.lm is not set"):
        RecommenderJudge(recommender(None))


def test_a_profile_is_cut_where_the_model_cannot_read_on(lm: Path) -> None:
    language = ItemLanguage.of(recommender(lm).model)
    short, long = Statement(text="Likes foxes.", source="edited"), Statement(text="x " * 249, source="edited")
    profile = Profile(version=1, statements=(short, long, long))
    text = fitting_text(language, profile, (1, 2))
    assert text.startswith("Likes foxes.")
    assert len(text) < len(profile.text)
    found = language.read([profile_prompt(language, text, (1, 2))])
    assert int(found.lengths[0]) <= language.backbone.max_positions
    assert fitting_text(language, Profile(version=1, statements=(short,)), ()) == "Likes foxes."
