"""The reasoning mode: chains are sampled and ended, and items are ranked by their probability over the chains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_codes import random_codes
from tiny_lm import save_tiny_lm

from recsys.data.sequences import Sequences
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.constraints import Cap, Constraints
from recsys.generator.groups import Groups
from recsys.generator.lm.examples import Items
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons, write
from recsys.generator.lm.templates import Templates, render
from recsys.generator.recommender import GenerativeRecommender, build_model

SIZES, NUM_ITEMS = (4, 8), 20
CONFIG = ReasonConfig(chains=3, max_tokens=6, temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> GenerativeRecommender:
    source = save_tiny_lm(tmp_path_factory.mktemp("lm"))
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": "flat", "max_history": 4, "lm": {"name": str(source)}})
    )
    codes = random_codes(NUM_ITEMS, SIZES)
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return GenerativeRecommender(config, codes, SIZES, None, model)


def test_items_are_ranked_by_their_mean_probability_over_the_chains(recommender: GenerativeRecommender) -> None:
    histories = [[1, 2], []]
    found = recommend_with_reasons(recommender, Sequences.from_lists(histories), NUM_ITEMS, CONFIG, seed=1)
    wording = Templates.load().reasoning
    for row, history in enumerate(histories):
        prompt = render(wording.train[0], {"history": Items(tuple(history)) if history else "(none)"})
        total = np.zeros(NUM_ITEMS)
        for chain in found.chains[row]:
            lead = wording.lead(None)
            alone = recommender.complete([(*prompt, chain, wording.end, *lead)], NUM_ITEMS)
            total[alone.items[0]] += np.exp(alone.scores[0].astype(np.float64)) / CONFIG.chains
        recommended = found.recommendations
        np.testing.assert_allclose(np.exp(recommended.scores[row]), total[recommended.items[row]], rtol=1e-3)
        np.testing.assert_array_equal(np.sort(recommended.items[row]), np.arange(NUM_ITEMS))
        assert (np.diff(recommended.scores[row]) <= 0).all()
    np.testing.assert_allclose(np.exp(found.recommendations.scores).sum(axis=1), 1.0, atol=1e-3)


def test_chains_repeat_with_their_seed_and_differ_among_each_other(recommender: GenerativeRecommender) -> None:
    histories = Sequences.from_lists([[1, 2]])
    first, again, other = (
        recommend_with_reasons(recommender, histories, 3, CONFIG, seed=seed).chains for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first[0])) > 1


def test_a_text_ends_with_the_words_that_end_it(recommender: GenerativeRecommender, monkeypatch) -> None:
    language = ItemLanguage(recommender.model)
    end = "\nEnd of reasoning."
    script = language.backbone.text_tokens("the fox") + language.backbone.text_tokens(end)
    drawn = iter(script)

    def follow(logits: torch.Tensor, config: ReasonConfig, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return torch.tensor([next(drawn)]), torch.zeros(1)

    monkeypatch.setattr("recsys.generator.lm.reason._draw", follow)
    long = CONFIG.model_copy(update={"max_tokens": 100})
    assert write(language, [("why?",)], end, long, seed=0) == ["the fox"]
    assert next(drawn, None) is None


def test_what_was_written_is_likely_to_the_model_that_wrote_it(recommender: GenerativeRecommender) -> None:
    """At a low temperature a text is the model's own most probable continuation, token by token, whatever its prompt's
    length: positions and masks of the writing are those of reading."""
    language = ItemLanguage(recommender.model)
    greedy = ReasonConfig(chains=1, max_tokens=5, temperature=1e-4, top_p=0.5)
    prompts = [("a",), ("the quick brown fox", Items((1, 2, 3)))]
    texts = write(language, prompts, "\nEnd.", greedy, seed=0)
    for prompt, text in zip(prompts, texts, strict=True):
        rows = torch.from_numpy(language.writer(100).read(prompt))
        for _ in range(5):
            with torch.no_grad():
                hidden = language.backbone(language.inputs(*rows.unsqueeze(1)))[0, -1]
            token = int(language.backbone.text_logits(hidden).argmax())
            rows = torch.cat([rows, torch.tensor([[token], [-1]])], dim=1)
        assert text == language.backbone.text(rows[0, -5:].tolist())


def test_constraints_hold_in_reasoning_mode(recommender: GenerativeRecommender) -> None:
    deny = [np.arange(0, NUM_ITEMS, 2)]
    found = recommend_with_reasons(
        recommender, Sequences.from_lists([[1]]), 15, CONFIG, constraints=Constraints(deny=deny)
    ).recommendations
    assert set(found.items[0][:10]) == set(range(1, NUM_ITEMS, 2))
    assert (found.items[0][10:] == -1).all()
    assert found.short == ["few_permitted"]


def test_caps_hold_over_the_chains_and_keep_the_best_item(recommender: GenerativeRecommender) -> None:
    histories = Sequences.from_lists([[1], [2, 3]])
    cap = Cap(groups=Groups.from_prefixes(recommender.codes, 1), most=2)
    everything = recommend_with_reasons(recommender, histories, NUM_ITEMS, CONFIG).recommendations
    found = recommend_with_reasons(
        recommender, histories, NUM_ITEMS, CONFIG, constraints=Constraints(caps=[cap])
    ).recommendations
    for row in range(2):
        counts = np.zeros(SIZES[0], dtype=int)
        expected = []
        for item in everything.items[row]:
            group = recommender.codes[item, 0]
            if counts[group] < 2:
                counts[group] += 1
                expected.append(item)
        listed = found.items[row][found.items[row] >= 0]
        assert np.bincount(recommender.codes[listed, 0], minlength=SIZES[0]).max() == 2
        assert listed[0] == expected[0]
        assert len(listed) == len(expected)
        assert found.short is not None
        assert found.short[row] == "caps"
