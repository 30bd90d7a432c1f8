"""Several heads on one backbone: what their mix is, and what it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data import Sequences
from recsys.errors import ArtifactError, ConfigError
from recsys.generator import GenerativeRecommender
from recsys.generator.depth import DepthHeads
from recsys.generator.nested import NestedModel
from recsys.generator.walk import legal_log_softmax

RecommenderFactory = Callable[..., GenerativeRecommender]
HISTORIES = Sequences.from_lists([[1, 2, 3], [7], [], [40, 4, 4, 9, 11]])
NAMES = ["accuracy", "novelty", "depth"]


@pytest.fixture
def plain(make_recommender: RecommenderFactory) -> GenerativeRecommender:
    return make_recommender(num_items=120, sizes=(6, 5, 8))


def heads(model: NestedModel) -> DepthHeads:
    assert isinstance(model.depth, DepthHeads)
    return model.depth


def same_lists(one: GenerativeRecommender, other: GenerativeRecommender, tolerance: float) -> None:
    first, second = one.recommend(HISTORIES, 12), other.recommend(HISTORIES, 12)
    np.testing.assert_allclose(first.scores, second.scores, rtol=0, atol=tolerance)
    assert np.array_equal(first.items, second.items)


def test_one_head_is_the_plain_model(plain: GenerativeRecommender) -> None:
    headed = plain.with_objectives(["accuracy"])
    assert headed.objectives == {"accuracy": 1.0}
    same_lists(headed, plain, 0)
    rows, lengths = torch.tensor([[1, 2, 3, 50], [7, 0, 0, 0]]), torch.tensor([4, 1])
    one, other = (made.model.target_log_probs(rows, lengths) for made in (headed, plain))
    assert torch.equal(one, other)


@pytest.mark.parametrize("weights", [(1, 0, 0), (1, 1, 1), (0.2, 0.3, 0.5), (3, 0, 9)])
def test_equal_heads_are_the_plain_model_however_they_are_mixed(
    weights: tuple[float, ...], plain: GenerativeRecommender
) -> None:
    headed = plain.with_objectives(NAMES, weights=dict(zip(NAMES, weights, strict=True)), noise=0)
    assert sum(headed.objectives.values()) == pytest.approx(1)
    same_lists(headed, plain, 2e-5)


def test_the_default_dial_changes_nothing_and_one_end_of_it_is_one_head(plain: GenerativeRecommender) -> None:
    headed = plain.with_objectives(NAMES, noise=0.3)
    assert headed.objectives == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    same_lists(headed.weighted(headed.objectives), headed, 0)
    same_lists(headed.weighted(dict.fromkeys(NAMES, 7)), headed, 0)
    model = headed.model
    assert isinstance(model, NestedModel)
    for number, name in enumerate(NAMES):
        alone = GenerativeRecommender(
            headed.config,
            headed.codes,
            headed.codebook_sizes,
            headed.item_vectors,
            model.with_depth(heads(model).head(number)),
        )
        same_lists(headed.weighted({name: 2}), alone, 0)
    assert headed.objectives == pytest.approx(dict.fromkeys(NAMES, 1 / 3)), "a dial is of its own copy"


def test_the_mix_is_that_of_the_heads_logits_on_every_step(plain: GenerativeRecommender) -> None:
    """Beam search of the mix against logits that were mixed by hand, over all items."""
    headed = plain.with_objectives(["accuracy", "novelty"], weights={"accuracy": 1, "novelty": 3}, noise=0.3)
    model = headed.model
    assert isinstance(model, NestedModel)
    trie = model.trie
    found = headed.recommend(HISTORIES, 120, beams=120)
    views = [model.with_depth(heads(model).head(number)) for number in range(2)]
    everything = torch.arange(120).unsqueeze(0)
    for row, history in enumerate(HISTORIES):
        items = torch.from_numpy(history).unsqueeze(0)
        states = [view.start(items, torch.tensor([len(history)])) for view in views]
        states = [state.expand(-1, 120, -1) for state in states]
        total = torch.zeros(1, 120)
        parents = torch.zeros(1, 120, dtype=torch.int64)
        for level in range(trie.num_levels):
            children = trie.children(level, parents)
            logits = [view.child_logits(state, level, children) for view, state in zip(views, states, strict=True)]
            log_probs = legal_log_softmax(0.25 * logits[0] + 0.75 * logits[1], children)
            slots = trie.child_slots(level, everything)[1]
            total += log_probs.gather(-1, slots.unsqueeze(-1)).squeeze(-1)
            if level < trie.num_levels - 1:
                parents = trie.paths[everything, level]
                codes = trie.codes[level][parents]
                states = [
                    view.advance(state, level, everything, codes) for view, state in zip(views, states, strict=True)
                ]
        np.testing.assert_allclose(
            found.scores[row], total[0, torch.from_numpy(found.items[row])].detach().numpy(), atol=2e-5
        )
        assert total.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_heads_differ_by_their_noise_and_by_nothing_else(plain: GenerativeRecommender) -> None:
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    headed = plain.with_objectives(["accuracy", "novelty"], seed=3)
    again = plain.with_objectives(["accuracy", "novelty"], seed=3)
    state = headed.model.state_dict()
    for name, value in again.model.state_dict().items():
        assert torch.equal(state[name], value), name
    differences = []
    for name, value in before.items():
        assert torch.equal(plain.model.state_dict()[name], value), name
        if not name.startswith("depth."):
            assert torch.equal(state[name], value), name
            continue
        both = [state[name.replace("depth.", f"depth.objectives.{number}.", 1)] for number in range(2)]
        assert not torch.equal(both[0], both[1]), name
        differences += [(head - value).flatten() for head in both]
    assert torch.cat(differences).std().item() == pytest.approx(1e-3, rel=0.05)


def test_heads_survive_saving_and_another_catalogue(plain: GenerativeRecommender, tmp_path: Path) -> None:
    headed = plain.with_objectives(["accuracy", "novelty"], weights={"novelty": 1, "accuracy": 2}, noise=0.3)
    headed.save(tmp_path)
    loaded = GenerativeRecommender.load(tmp_path, plain.codes, plain.codebook_sizes, plain.item_vectors)
    assert loaded.objectives == headed.objectives == pytest.approx({"accuracy": 2 / 3, "novelty": 1 / 3})
    same_lists(loaded, headed, 0)
    moved = headed.with_catalog(plain.codes[::-1].copy(), plain.item_vectors[::-1].copy(), np.arange(120)[::-1])  # type: ignore[index]
    assert moved.objectives == headed.objectives
    mirrored = Sequences.from_lists([[119 - item for item in history.tolist()] for history in HISTORIES])
    np.testing.assert_array_equal(119 - moved.recommend(mirrored, 5).items, headed.recommend(HISTORIES, 5).items)
    (tmp_path / "generator.json").write_text((tmp_path / "generator.json").read_text().replace('"novelty"', '"acc'))
    with pytest.raises(ArtifactError, match="cannot read"):
        GenerativeRecommender.load(tmp_path, plain.codes, plain.codebook_sizes, plain.item_vectors)


def test_what_has_no_such_heads_is_named(plain: GenerativeRecommender, make_recommender: RecommenderFactory) -> None:
    with pytest.raises(ConfigError, match=r"needs generator\.model\.shape nested, this is flat"):
        make_recommender(shape="flat", num_items=20, sizes=(5, 5)).with_objectives(["accuracy"])
    with pytest.raises(ConfigError, match=r"one objective; make a run with align\.objectives"):
        plain.weighted({"accuracy": 1})
    headed = plain.with_objectives(["accuracy", "novelty"])
    with pytest.raises(ConfigError, match="has heads already, for accuracy, novelty"):
        headed.with_objectives(["accuracy"])
    with pytest.raises(ConfigError, match="'price' is no objective of this model; it has accuracy, novelty"):
        headed.weighted({"price": 1})
    for wrong in ({"accuracy": -1.0, "novelty": 2.0}, {"accuracy": 0.0}, {"accuracy": float("nan")}):
        with pytest.raises(ConfigError, match="must be 0 or more, and one above 0"):
            headed.weighted(wrong)


def test_a_session_is_read_once_however_it_is_weighed(plain: GenerativeRecommender) -> None:
    headed = plain.with_objectives(["accuracy", "novelty"], noise=0.3)
    novel = headed.weighted({"novelty": 1})
    keys = [f"s{row}" for row in range(len(HISTORIES))]
    headed.recommend(HISTORIES, 5, sessions=keys)
    found = novel.recommend(HISTORIES, 5, sessions=keys)
    assert headed.sessions.counts.hits == len(HISTORIES)
    expected = novel.recommend(HISTORIES, 5)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    drawn = novel.sample(HISTORIES, 3, seeds=np.arange(len(HISTORIES)))
    scores = novel.recommend(HISTORIES, 120, beams=120)
    for row, items in enumerate(drawn.items.tolist()):
        by_item = dict(zip(scores.items[row].tolist(), scores.scores[row].tolist(), strict=True))
        assert drawn.scores[row].tolist() == pytest.approx([by_item[item] for item in items], abs=1e-4)
