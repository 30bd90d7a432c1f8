"""Encoded histories: what is gone on from equals what is read anew, and memory is bounded."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from padding import padded
from random_codes import random_codes

from recsys.data.sequences import Sequences
from recsys.generator import caches
from recsys.generator.config import ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.nested import NestedModel
from recsys.generator.sessions import Sessions
from recsys.generator.tree_decoding import read_on, split, stack
from recsys.generator.trie import ItemTrie

MODELS = [("nested", "gpt2"), ("nested", "llama"), ("flat", "gpt2"), ("flat", "llama"), ("any_order", "gpt2")]


@cache
def _model() -> NestedModel:
    """One model for all examples of a property."""
    codes = random_codes(50, (4, 8, 8))
    return NestedModel(ModelConfig(hidden_size=16, max_history=10), ItemTrie(codes, (4, 8, 8)), codes, None).eval()


@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_a_session_that_goes_on_gives_what_reading_anew_gives(make_recommender, shape: str, body: str) -> None:
    recommender = make_recommender(shape, body=body)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 500, size=size) for size in (0, 1, 4)]
    for _ in range(4):
        batch = Sequences.from_lists(histories)
        kept = recommender.recommend(batch, k=30, sessions=["a", "b", "c"])
        anew = recommender.recommend(batch, k=30)
        np.testing.assert_array_equal(kept.items, anew.items)
        np.testing.assert_allclose(kept.scores, anew.scores, atol=1e-4)
        histories = [np.append(history, rng.integers(0, 500, size=2)) for history in histories]
    # All histories fit what the model reads, so only the first request of a session reads it as a whole.
    counts = recommender.sessions.counts
    assert (counts.misses, counts.extensions, counts.hits) == (3, 9, 0)


def test_a_repeated_request_runs_no_pass_over_the_history(make_recommender, monkeypatch) -> None:
    recommender = make_recommender("flat")
    histories = Sequences.from_lists([[3, 4, 5]])
    first = recommender.recommend(histories, k=10, sessions=["u"])
    monkeypatch.setattr(recommender.model.body, "prefill", None)
    again = recommender.recommend(histories, k=10, sessions=["u"])
    np.testing.assert_array_equal(first.items, again.items)
    assert recommender.sessions.counts.hits == 1


def test_another_history_under_the_same_key_is_read_anew(make_recommender) -> None:
    recommender = make_recommender("flat")
    recommender.recommend(Sequences.from_lists([[3, 4, 5]]), k=5, sessions=["u"])
    for history in ([3, 4, 6], [3, 4], [9]):
        batch = Sequences.from_lists([history])
        kept = recommender.recommend(batch, k=5, sessions=["u"])
        np.testing.assert_array_equal(kept.items, recommender.recommend(batch, k=5).items)
    assert recommender.sessions.counts.misses == 4


def test_a_window_that_slides_is_read_anew(make_recommender) -> None:
    recommender = make_recommender("nested", max_history=4)
    for history in ([1, 2, 3, 4], [1, 2, 3, 4, 5]):
        batch = Sequences.from_lists([history])
        kept = recommender.recommend(batch, k=5, sessions=["u"])
        np.testing.assert_allclose(kept.scores, recommender.recommend(batch, k=5).scores, atol=1e-5)
    assert recommender.sessions.counts.misses == 2


def test_searching_leaves_the_session_as_it_was(make_recommender) -> None:
    recommender = make_recommender("flat")
    recommender.recommend(Sequences.from_lists([[3, 4]]), k=5, sessions=["u"])
    size = recommender.sessions.num_bytes
    recommender.recommend(Sequences.from_lists([[3, 4]]), k=5, beams=40, sessions=["u"])
    assert recommender.sessions.num_bytes == size


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 9)), min_size=1, max_size=25))
def test_memory_never_exceeds_the_limit_and_the_latest_stay(requests: list[tuple[str, int]]) -> None:
    model = _model()
    one = model.encode(*padded([np.arange(9)])).num_bytes
    sessions = Sessions(3 * one)
    for key, length in requests:
        sessions.read(model, [key], [np.arange(length)])
        assert sessions.num_bytes <= 3 * one
        assert len(sessions) >= 1
    assert sessions.counts.misses + sessions.counts.extensions + sessions.counts.hits == len(requests)
    for key in "abcde":
        sessions.forget(key)
    assert (len(sessions), sessions.num_bytes) == (0, 0)


def test_what_is_larger_than_the_limit_is_answered_and_not_kept(make_recommender) -> None:
    recommender = make_recommender("flat")
    recommender.sessions = Sessions(0)
    batch = Sequences.from_lists([[1, 2]])
    kept = recommender.recommend(batch, k=5, sessions=["u"])
    np.testing.assert_array_equal(kept.items, recommender.recommend(batch, k=5).items)
    assert len(recommender.sessions) == 0


def test_a_key_a_history_is_needed(make_recommender) -> None:
    with pytest.raises(ValueError, match="one key a history: 2, got 1"):
        make_recommender().recommend(Sequences.from_lists([[1], [2]]), k=1, sessions=["u"])


@pytest.mark.parametrize("body", ["gpt2", "llama"])
def test_prefixes_are_taken_apart_and_put_together(make_recommender, body: str) -> None:
    model = make_recommender("flat", body=body).model
    with torch.inference_mode():
        together = model.encode(*padded([np.array([1, 2, 3]), np.array([4]), np.array([], dtype=np.int64)]))
        again = stack(split(together))
    torch.testing.assert_close(again.hidden, together.hidden)
    assert again.lengths.tolist() == together.lengths.tolist() == [10, 4, 1]
    assert sum(prefix.num_bytes for prefix in split(together)) < together.num_bytes
    fork = caches.fork(together.cache)
    assert fork.get_seq_length() == together.cache.get_seq_length() == 10


def test_reading_on_after_unequal_lengths_is_refused(make_recommender) -> None:
    model = make_recommender("flat").model
    prefix = model.encode(*padded([np.array([1, 2]), np.array([3])]))
    with pytest.raises(ValueError, match=r"lengths must be equal to read on, got \[7, 4\]"):
        read_on(model.body, prefix, torch.zeros(2, 1, 16))


@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_a_batch_of_unlike_requests_gives_what_each_alone_gives(make_recommender, shape: str, body: str) -> None:
    recommender = make_recommender(shape, body=body)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 500, size=size) for size in (1, 7, 3, 5)]
    allow = rng.random((4, 500)) < [[1.0], [0.3], [0.7], [1.0]]
    deny = [histories[0], np.zeros(0, dtype=np.int64), histories[2], np.arange(100)]
    sessions = ["a", None, None, "b"]
    recommender.recommend(Sequences.from_lists([histories[0][:1], histories[3][:2]]), k=3, sessions=["a", "b"])
    lengths = [3, 20, 1, recommender.nested_up_to]
    together = recommender.recommend(
        Sequences.from_lists(histories),
        max(lengths),
        constraints=Constraints(allow=allow, deny=deny),
        sessions=sessions,
    )
    for row, length in enumerate(lengths):
        held = Constraints(allow=allow[row], deny=[deny[row]])
        alone = recommender.recommend(Sequences.from_lists([histories[row]]), length, constraints=held)
        np.testing.assert_array_equal(together.items[row, :length], alone.items[0])
        np.testing.assert_allclose(together.scores[row, :length], alone.scores[0], atol=1e-4)
    assert len(recommender.sessions) == 2


def test_lists_with_places_for_new_items_are_of_one_length(make_recommender) -> None:
    recommender = make_recommender("nested")
    assert recommender.nested_up_to == recommender.config.beams
    recommender.config = recommender.config.model_copy(update={"new_item_slots": 1})
    assert recommender.nested_up_to == recommender.config.beams
    recommender.model.learned[3] = False
    assert recommender.nested_up_to == 1
