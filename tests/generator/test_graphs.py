"""What graphs record, run over the same buffers without a GPU, against the decoder as it stands."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import Sequences
from recsys.errors import ConfigError
from recsys.generator import caches
from recsys.generator.constraints import Cap, Constraints, RangeCounter
from recsys.generator.decoder import beam_search
from recsys.generator.graphs import SearchGraphs
from recsys.generator.groups import Groups
from recsys.generator.lists import SearchPlan, find_lists
from recsys.generator.mask_counts import CountTable
from recsys.generator.placement import place
from recsys.generator.recommender import GenerativeRecommender

MODELS = [("nested", "gpt2"), ("nested", "llama"), ("flat", "gpt2"), ("flat", "llama")]


def rehearsed(recommender: GenerativeRecommender, **options) -> GenerativeRecommender:
    """What `with_graphs` makes of a recommender on a GPU."""
    twin = copy.copy(recommender)
    twin.graphs = SearchGraphs(recommender.model, **options)
    return twin


def histories(*lengths: int, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    return Sequences.from_lists([rng.integers(0, 500, size=length) for length in lengths])


def assert_same(found, expected) -> None:
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found.certified, expected.certified)
    np.testing.assert_allclose(found.bound, expected.bound, atol=1e-5)
    assert found.short == expected.short


@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_lists_are_those_of_the_decoder(make_recommender, shape: str, body: str) -> None:
    recommender = make_recommender(shape, body=body)
    twin = rehearsed(recommender)
    for turn, lengths in enumerate([(3, 0, 10), (7,), (1, 25, 4, 4, 9), (2, 2, 2), (0, 0)]):
        batch = histories(*lengths, seed=turn)
        for k, beams in ((5, 20), (20, 8)):
            assert_same(twin.recommend(batch, k, beams=beams), recommender.recommend(batch, k, beams=beams))
    counts = twin.graphs.counts
    assert counts.eager == {}
    # Batches of 3 and 5 use what was padded to 4 and 8; (2, 2, 2) fits what (3, 0, 10) has recorded.
    assert counts.replayed == 20
    assert counts.recorded < 20


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_filters_of_one_request_do_not_reach_the_next(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    twin = rehearsed(recommender)
    rng = np.random.default_rng(3)
    for turn, count in enumerate((3, 1, 4, 2)):
        batch = histories(*rng.integers(0, 12, count), seed=turn)
        own = rng.random((count, 500)) < 0.1
        deny = [rng.integers(0, 500, rng.integers(0, 30)) for _ in range(count)]
        groups = Groups.from_labels([[item % 7] for item in range(500)])
        for held in (
            Constraints(allow=own),
            Constraints(allow=own[0]),
            Constraints(deny=deny),
            Constraints(allow=own, deny=deny),
            Constraints(allow=own[0], deny=deny, caps=(Cap(groups=groups, most=2),)),
            Constraints(allow=np.zeros(500, dtype=bool)),
            Constraints(),
        ):
            expected = recommender.recommend(batch, 10, beams=20, constraints=held)
            assert_same(twin.recommend(batch, 10, beams=20, constraints=held), expected)
    assert twin.graphs.counts.eager == {}


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_sessions_are_searched_with_graphs_too(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    twin = rehearsed(recommender)
    for lists in ([[1, 2, 3], [4]], [[1, 2, 3, 9], [4]], [[1, 2, 3, 9], [4, 5, 6, 7, 8]]):
        batch = Sequences.from_lists(lists)
        assert_same(twin.recommend(batch, 5, sessions=["a", "b"]), recommender.recommend(batch, 5))
    assert twin.graphs.counts.replayed == 3


def test_what_has_no_graph_is_counted_with_its_reason_and_answered(make_recommender, caplog) -> None:
    recommender = make_recommender("flat")
    twin = rehearsed(recommender, batch_sizes=(1, 2), max_graphs=2)
    caplog.set_level("INFO")
    for batch, k in ((histories(3, 4, 5), 5), (histories(3, 4), 5), (histories(3, 4), 6)):
        assert_same(twin.recommend(batch, k), recommender.recommend(batch, k))
    assert twin.graphs.counts.eager == {"encode: large batch": 1, "search: large batch": 1, "search: many sizes": 1}
    exact = twin.recommend(histories(3, 4), 5, beams=1, exact=True)
    assert_same(exact, recommender.recommend(histories(3, 4), 5, beams=1, exact=True))
    assert twin.graphs.counts.eager["search: exact lists"] > 0
    model, plan, seeds = recommender.model, SearchPlan(k=3, beams=3), torch.tensor([1])
    prefix = model.encode(torch.tensor([[4, 5]]), torch.tensor([2]))
    drawn, expected = (
        find_lists(model, model.trie, prefix, Constraints(), plan, seeds, graphs) for graphs in (twin.graphs, None)
    )
    assert torch.equal(drawn.items, expected.items)
    assert twin.graphs.counts.eager["search: samples"] == 1
    # Once a reason, however often.
    assert [record.message for record in caplog.records].count("without a CUDA graph, search: many sizes") == 1


def test_heads_that_are_mixed_otherwise_have_no_graph(make_recommender) -> None:
    recommender = make_recommender().with_objectives(["clicks", "sales"], noise=0.1)
    twin = rehearsed(recommender)
    assert_same(twin.recommend(histories(4), 5), recommender.recommend(histories(4), 5))
    sales = {"sales": 1.0}
    assert_same(twin.weighted(sales).recommend(histories(4), 5), recommender.weighted(sales).recommend(histories(4), 5))
    assert twin.graphs.counts.eager == {"encode: another model": 1, "search: another model": 1}


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_items_that_join_are_found_by_graphs_of_their_own(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    twin = rehearsed(recommender)
    batch = Sequences.from_lists([[5, 6]])
    first = twin.recommend(batch, 5)
    known = {tuple(row) for row in recommender.codes.tolist()}
    new = [row for row in make_recommender(shape).codes.tolist() if tuple(row) not in known]
    codes = Rows(recommender.codes, np.array(new, dtype=np.int64))
    rows = Rows(recommender.item_vectors, np.random.default_rng(2).normal(size=(len(new), 6)).astype(np.float32))
    grown, grown_twin = (each.with_items(codes, rows) for each in (recommender, twin))
    assert_same(grown_twin.recommend(batch, 50), grown.recommend(batch, 50))
    assert grown_twin.graphs is not twin.graphs
    assert_same(twin.recommend(batch, 5), first)


@pytest.mark.parametrize(("shape", "body"), MODELS)
@torch.inference_mode()
def test_what_is_recorded_asks_the_device_for_no_value(make_recommender, shape: str, body: str) -> None:
    """Tensors without values: a shape or a branch that depends on one, or a step to another device, is an error."""
    model = copy.copy(make_recommender(shape, body=body).model)
    place(model, torch.device("meta"))
    items = torch.zeros(4, 10, dtype=torch.int64, device="meta")
    prefix = model.encode(items, torch.ones(4, dtype=torch.int64, device="meta"))
    counter = RangeCounter(model.trie, Constraints(), 4)
    counter.allowed = CountTable(torch.zeros(4, 501, dtype=torch.int32, device="meta"))
    counter.denied = torch.zeros(4, 16, dtype=torch.int64, device="meta")

    def search() -> None:
        found = beam_search(model, model.trie, model.state(prefix), batch_size=4, k=10, beams=20, constraints=counter)
        assert found.items.device.type == "meta"

    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|nonzero"):
        search()
    model.fixed_shapes = True
    search()


def test_graphs_need_a_gpu(make_recommender) -> None:
    with pytest.raises(ConfigError, match="this is nested, cpu"):
        make_recommender().with_graphs()


@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_a_body_in_half_precision_finds_nearly_the_same(make_recommender, shape: str, body: str) -> None:
    recommender = make_recommender(shape, body=body)
    batch = histories(3, 0, 10)
    expected = recommender.recommend(batch, 500, beams=500)
    place(recommender.model, torch.device("cpu"), torch.bfloat16)
    prefix = recommender.model.encode(torch.tensor([[3, 4]]), torch.tensor([2]))
    assert {table.dtype for table in caches.tables(prefix.cache)} == {torch.bfloat16}
    assert prefix.hidden.dtype == torch.float32
    found = recommender.recommend(batch, 500, beams=500)
    for row in range(3):
        scores, exact = np.zeros((2, 500))
        scores[found.items[row]], exact[expected.items[row]] = found.scores[row], expected.scores[row]
        assert np.corrcoef(np.exp(scores), np.exp(exact))[0, 1] > 0.99
    twin = rehearsed(recommender).recommend(batch, 10)
    np.testing.assert_allclose(twin.scores, recommender.recommend(batch, 10).scores, atol=0.05)
