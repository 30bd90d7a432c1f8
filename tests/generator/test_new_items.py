"""A catalogue that changes after the fit, and the places reserved for what is new in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import Sequences
from recsys.errors import ArtifactError, DataError
from recsys.generator import mask_counts
from recsys.generator.constraints import Cap, Constraints
from recsys.generator.groups import Groups
from recsys.generator.new_items import reserve_slots
from recsys.generator.recommendations import Recommendations
from recsys.generator.recommender import GenerativeRecommender
from recsys.generator.spliced import Spliced

SHAPES = ["nested", "flat", "any_order"]
HISTORIES = Sequences.from_lists([[1, 2, 3], [40], []])


def with_new_items(recommender: GenerativeRecommender, count: int) -> GenerativeRecommender:
    """The same items at the front, `count` free codes behind them."""
    sizes = recommender.codebook_sizes
    taken = {tuple(row) for row in recommender.codes.tolist()}
    free = [code for code in np.ndindex(*sizes) if code not in taken][:: max(1, 1000 // count)][:count]
    codes = np.concatenate([recommender.codes, np.array(free, dtype=np.int64)])
    vectors = np.random.default_rng(5).normal(size=(len(codes), 6)).astype(np.float32)
    vectors[: len(recommender.codes)] = np.random.default_rng(1).normal(size=(len(recommender.codes), 6))
    return recommender.with_catalog(codes, vectors, known=np.arange(len(recommender.codes)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_catalogue_in_another_order_gives_the_same_lists(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    order = np.random.default_rng(3).permutation(500)
    place = np.argsort(order)
    vectors = None if recommender.item_vectors is None else recommender.item_vectors[order]
    moved = recommender.with_catalog(recommender.codes[order], vectors, known=place)
    before = recommender.recommend(HISTORIES, 10)
    after = moved.recommend(HISTORIES.renumber(place), 10)
    assert order[after.items].tolist() == before.items.tolist()
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_catalogues_can_have_their_weights_in_memory_once(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    codes, vectors = recommender.codes[1:], recommender.item_vectors
    vectors, known = None if vectors is None else vectors[1:], np.arange(500) - 1
    copied, sharing = (
        recommender.with_catalog(codes, vectors, known, shares_weights=shares_weights)
        for shares_weights in (False, True)
    )
    np.testing.assert_array_equal(
        sharing.recommend(HISTORIES.renumber(known), 10).scores, copied.recommend(HISTORIES.renumber(known), 10).scores
    )

    def places(one: GenerativeRecommender) -> set[int]:
        return {weights.data_ptr() for weights in one.model.parameters() if weights.shape[0] not in (499, 500)}

    assert places(sharing) == places(recommender)
    assert places(copied).isdisjoint(places(recommender))


@pytest.mark.parametrize("shape", SHAPES)
def test_new_items_can_be_read_and_recommended_and_removed_ones_cannot(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    extended = with_new_items(recommender, 30)
    only_new = np.arange(530) >= 500
    found = extended.recommend(Sequences.from_lists([[510, 1]]), 30, constraints=Constraints(allow=only_new))
    assert sorted(found.items[0].tolist()) == list(range(500, 530))
    assert np.isfinite(found.scores).all()
    known = np.arange(500) - 1
    vectors = None if recommender.item_vectors is None else recommender.item_vectors[1:]
    shrunk = recommender.with_catalog(recommender.codes[1:], vectors, known=known)
    assert len(shrunk.codes) == 499
    assert shrunk.recommend(HISTORIES.renumber(known), 5).items.max() < 499


@pytest.mark.parametrize("shape", ["nested", "any_order"])
def test_new_items_do_not_water_down_what_was_learned_about_their_codes(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    extended = with_new_items(recommender, 100)
    with torch.no_grad():
        before, after = (
            model.node_means(0) if shape == "nested" else model._token_residuals()
            for model in (recommender.model, extended.model)
        )
    torch.testing.assert_close(after, before)
    assert not extended.model.item_residuals.weight[500:].any()


def test_what_is_new_is_still_known_after_saving(make_recommender, tmp_path: Path) -> None:
    extended = with_new_items(make_recommender("nested"), 30)
    extended.save(tmp_path)
    loaded = GenerativeRecommender.load(tmp_path, extended.codes, extended.codebook_sizes, extended.item_vectors)
    assert loaded.model.learned.tolist() == [True] * 500 + [False] * 30
    assert loaded.recommend(HISTORIES, 7).items.tolist() == extended.recommend(HISTORIES, 7).items.tolist()


@pytest.mark.parametrize("shape", ["nested", "any_order"])
def test_a_search_after_a_step_in_evaluation_mode_reads_the_new_weights(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    model = recommender.model
    recommender.recommend(HISTORIES, 5)
    loss = -model.target_log_probs(torch.tensor([[1, 2, 3]]), torch.tensor([3])).mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=5.0).step()
    after = recommender.recommend(HISTORIES, 5)
    model.train()
    fresh = GenerativeRecommender(
        recommender.config, recommender.codes, recommender.codebook_sizes, recommender.item_vectors, model
    ).recommend(HISTORIES, 5)
    np.testing.assert_array_equal(after.scores, fresh.scores)


def test_means_of_many_items_are_read_from_a_file_until_weights_change(
    make_recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.generator.recommender._MEANS_FROM", 500)
    recommender = make_recommender("nested")
    torch.nn.init.normal_(recommender.model.item_residuals.weight)
    recommender.save(tmp_path)

    def load() -> GenerativeRecommender:
        return GenerativeRecommender.load(
            tmp_path, recommender.codes, recommender.codebook_sizes, recommender.item_vectors
        )

    loaded, expected = load(), recommender.recommend(HISTORIES, 10)
    assert sorted(loaded.model.stored_means) == list(range(loaded.trie.num_levels - 1))
    monkeypatch.setattr(torch.Tensor, "index_add", lambda *_: pytest.fail("means are computed"))
    for one in (loaded, loaded.with_body(loaded.model.body)):
        found = one.recommend(HISTORIES, 10)
        assert found.items.tolist() == expected.items.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
    monkeypatch.undo()
    monkeypatch.setattr("recsys.generator.recommender._MEANS_FROM", 500)
    step = load()
    (-step.model.target_log_probs(torch.tensor([[1, 2, 3]]), torch.tensor([3])).mean()).backward()
    assert not step.model.stored_means
    for forgotten in (
        load().model.train(),
        load().with_catalog(loaded.codes, loaded.item_vectors, np.arange(500)).model,
    ):
        assert not forgotten.stored_means
    state = load()
    state.model.load_state_dict(recommender.model.state_dict())
    assert not state.model.stored_means


@pytest.mark.parametrize(
    ("known", "width", "message"),
    [
        (np.arange(499), 6, r"known must be \[500\]"),
        (np.arange(500) + 1, 6, "values from 1 to 500"),
        (np.zeros(500, dtype=np.int64), 6, "sends 500 items to 1 places"),
        (np.arange(500), 5, r"item_vectors must be \[500, 6\], as this model reads them; found \[500, 5\]"),
        (np.arange(500), 0, "as this model reads them; found none"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused(
    make_recommender, known: np.ndarray, width: int, message: str
) -> None:
    recommender = make_recommender("nested")
    vectors = np.zeros((500, width), dtype=np.float32) if width else None
    with pytest.raises(DataError, match=message):
        recommender.with_catalog(recommender.codes, vectors, known)


def test_codes_of_another_tokenizer_are_refused(make_recommender) -> None:
    recommender = make_recommender("nested")
    codes = recommender.codes.copy()
    codes[0, 0] = 99
    with pytest.raises(ArtifactError, match="has code 99 on level 0"):
        recommender.with_catalog(codes, recommender.item_vectors, known=np.arange(500))


def test_reserved_places_hold_the_best_new_items_and_respect_constraints(make_recommender) -> None:
    extended = with_new_items(make_recommender("nested"), 30)
    plain = extended.recommend(HISTORIES, 10)
    config = extended.config.model_copy(update={"new_item_slots": 3})
    reserving = GenerativeRecommender(
        config, extended.codes, extended.codebook_sizes, extended.item_vectors, extended.model
    )
    deny = [np.array([500, 501])] * 3
    only_new = extended.recommend(HISTORIES, 3, constraints=Constraints(allow=np.arange(530) >= 500, deny=deny))
    found = reserving.recommend(HISTORIES, 10, constraints=Constraints(deny=deny))
    for row in range(3):
        own = [item for item in plain.items[row] if item >= 500 and item not in (500, 501)]
        new = [item for item in found.items[row] if item >= 500]
        assert len(new) == max(3, len(own))
        assert set(new) >= set(only_new.items[row].tolist())
        assert len(set(found.items[row].tolist())) == 10


def lists(*rows: list[int]) -> Recommendations:
    items = np.array(rows)
    return Recommendations(items=items, scores=np.where(items >= 0, -items, -np.inf).astype(np.float32))


@pytest.mark.parametrize(
    ("found", "new", "expected"),
    [
        pytest.param([1, 2, 3, 4], [91, 92], [1, 2, 91, 92], id="the worst old items give way"),
        pytest.param([1, 91, 3, 4], [91, 92], [1, 91, 3, 92], id="one that was found counts"),
        pytest.param([92, 91, 3, 4], [91, 92], [92, 91, 3, 4], id="enough were found"),
        pytest.param([1, 2, -1, -1], [91, 92], [1, 2, 91, 92], id="free places are used first"),
        pytest.param([1, 2, 3, 4], [91, -1], [1, 2, 3, 91], id="fewer new items than places"),
        pytest.param([1, 2, 3, 93], [91, 92], [1, 2, 93, 91], id="a new item at the end stays"),
    ],
)
def test_places_are_reserved(found: list[int], new: list[int], expected: list[int]) -> None:
    is_new = np.arange(100) > 90
    merged = reserve_slots(lists(found), lists(new), is_new)
    assert merged.items.tolist() == [expected]
    assert merged.scores.tolist() == [[-item for item in expected]]


def test_a_reserved_place_does_not_break_a_cap() -> None:
    found = Recommendations(
        items=np.array([[0, 1], [0, 1]]),
        scores=np.array([[-1.0, -2.0], [-1.0, -2.0]], dtype=np.float32),
        certified=np.array([True, False]),
        short=[None, None],
    )
    new = Recommendations(
        items=np.array([[2], [3]]),
        scores=np.array([[-5.0], [-6.0]], dtype=np.float32),
        certified=np.array([True, True]),
        short=[None, None],
    )
    # Items 0 and 2 are of one group, of which a list holds one.
    cap = Cap(groups=Groups.from_labels([["a"], ["b"], ["a"], ["c"]]), most=1)
    joined = reserve_slots(found, new, np.array([False, False, True, True]), [cap])
    assert joined.items.tolist() == [[0, 1], [0, 3]]
    assert joined.scores.tolist() == [[-1.0, -2.0], [-1.0, -6.0]]
    assert joined.certified is not None
    assert joined.certified.tolist() == [True, False]
    assert joined.short == [None, None]


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_items_that_are_looked_up_beside_a_large_trie_are_listed_as_those_that_are_put_into_it(
    make_recommender, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = make_recommender(shape)
    new = with_new_items(recommender, 30)
    codes = Rows(recommender.codes, new.codes[500:])
    vectors = Rows(
        np.zeros((500, 6), dtype=np.float32), np.random.default_rng(2).normal(size=(30, 6)).astype(np.float32)
    )
    put_in = recommender.with_items(codes, vectors, new_item_slots=2)
    monkeypatch.setattr("recsys.generator.trie._SPLICED_FROM", 1)
    beside = recommender.with_items(codes, vectors, new_item_slots=2)
    assert isinstance(beside.trie.items, Spliced)
    histories = Sequences.from_lists([[1, 2, 3], [40, 505], [529]])
    few, most = np.arange(530) % 40 == 0, np.arange(530) % 40 != 0
    for allow in (None, few, most, np.arange(530) % 2 == 0):
        for mask in (allow, None if allow is None else np.stack([allow, ~allow, allow])):
            held = Constraints(allow=mask, deny=[np.array([3, 520])] * 3)
            found, expected = (each.recommend(histories, 20, constraints=held) for each in (beside, put_in))
            assert found.items.tolist() == expected.items.tolist()
            assert found.scores.tolist() == expected.scores.tolist()
    every = [np.arange(530)] * 3
    for found, expected in zip(*(each.score_codes(histories, every) for each in (beside, put_in)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_mask_that_can_be_written_to_is_read_anew(make_recommender) -> None:
    recommender, allow = make_recommender("nested"), np.arange(500) % 2 == 0
    for _ in range(2):
        held = Constraints(allow=allow)
        assert (allow[recommender.recommend(HISTORIES, 5, constraints=held).items]).all()
        allow[:] = ~allow


def test_a_mask_that_cannot_be_written_to_is_counted_once(make_recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, counted = make_recommender("nested"), []
    count = mask_counts._counted
    monkeypatch.setattr(mask_counts, "_counted", lambda trie, mask: counted.append(mask) or count(trie, mask))
    lists = []
    for _ in range(2):
        allow = np.arange(500) % 2 == 0
        allow.flags.writeable = False
        held = Constraints(allow=allow)
        lists += [recommender.recommend(HISTORIES, 5, constraints=held).items.tolist() for _ in range(2)]
    assert len(counted) == 2
    assert lists == lists[:1] * 4


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_one_that_has_grown_grows_on_as_if_at_once(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    codes = with_new_items(recommender, 10).codes
    vectors = np.random.default_rng(2).normal(size=(510, 6)).astype(np.float32)

    def grown(one: GenerativeRecommender, before: int, count: int) -> GenerativeRecommender:
        return one.with_items(Rows(codes[:before], codes[before:count]), Rows(vectors[:before], vectors[before:count]))

    at_once = grown(recommender, 500, 510)
    in_steps = grown(grown(grown(recommender, 500, 500), 500, 504), 504, 510)
    found, expected = (
        each.recommend(Sequences.from_lists([[1, 502], [509, 3]]), 20).items for each in (in_steps, at_once)
    )
    assert found.tolist() == expected.tolist()


def test_means_of_other_weights_are_refused_and_old_ones_go(
    make_recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.generator.recommender._MEANS_FROM", 500)
    recommender = make_recommender("nested")
    recommender.save(tmp_path)
    path = tmp_path / "residual_means.safetensors"
    kept = path.read_bytes()
    monkeypatch.undo()
    recommender.save(tmp_path)
    assert not path.exists()
    path.write_bytes(kept)
    smaller = recommender.with_catalog(recommender.codes[:400], recommender.item_vectors[:400], np.r_[:400, [-1] * 100])
    smaller.save(tmp_path)
    path.write_bytes(kept)
    with pytest.raises(ArtifactError, match="is of other weights"):
        GenerativeRecommender.load(tmp_path, smaller.codes, smaller.codebook_sizes, smaller.item_vectors)
