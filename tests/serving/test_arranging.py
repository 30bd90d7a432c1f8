"""Re-ordering candidates: boosts, room for pins under caps, and a knob that trades scores for variety."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.generator import Cap, Groups
from recsys.generator.diversity import walk_one
from serving.arranging import Arrangement, arrange, diverse_order


def _distance(directions: np.ndarray) -> float:
    """Mean of half of one minus the cosine over pairs."""
    cosines = (directions @ directions.T)[np.triu_indices(len(directions), 1)]
    return float(((1 - cosines) / 2).mean())


def test_a_list_differs_more_the_higher_the_knob() -> None:
    """Five bunches of like items, the better bunches first: a list of five has more bunches the higher the knob."""
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.normal(size=(16, 5)))[0].T
    directions = np.repeat(centres, 6, axis=0).astype(np.float32)
    scores = -0.1 * np.arange(30, dtype=np.float32)
    orders = [diverse_order(scores, directions, knob) for knob in np.linspace(0, 1, 11)]
    distances = [_distance(directions[order[:5]]) for order in orders]
    assert orders[0].tolist() == list(range(30))
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(distances)), distances
    assert len({round(distance, 3) for distance in distances}) > 2
    assert {order[0] for order in orders} == {0}
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({item // 6 for item in orders[-1][:5]}) == 5


def test_equal_scores_keep_their_order_until_diversity_counts() -> None:
    directions = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    scores = np.zeros(4, dtype=np.float32)
    assert diverse_order(scores, directions, 0.0).tolist() == [0, 1, 2, 3]
    assert diverse_order(scores, directions, 0.5).tolist() == [0, 2, 3, 1]
    assert diverse_order(scores[:0], directions[:0], 0.5).tolist() == []


def test_without_boosts_and_diversity_nothing_changes() -> None:
    items, scores = np.array([3, 1, 2]), np.array([-1, -1, -2], dtype=np.float32)
    found = arrange(items, scores, Arrangement(), np.eye(4, dtype=np.float32).__getitem__)
    assert (found[0].tolist(), found[1].tolist()) == ([3, 1, 2], [-1, -1, -2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.lists(st.sampled_from("abc"), max_size=2, unique=True), min_size=6, max_size=12),
    most=st.integers(1, 3),
    num_pinned=st.integers(0, 3),
)
def test_pins_and_the_rest_keep_the_cap_together(labels: list[list[str]], most: int, num_pinned: int) -> None:
    pinned, items = np.arange(num_pinned), np.arange(num_pinned, len(labels))
    caps = [Cap(groups=Groups.from_labels(labels), most=most, given=pinned)]
    kept = walk_one(items, caps, len(labels))
    of_pins = Counter(label for item in pinned for label in labels[item])
    counts = of_pins + Counter(label for item in kept for label in labels[item])
    # What is pinned stands, even where it breaks the cap by itself.
    assert all(count <= max(most, of_pins[label]) for label, count in counts.items())
    # Whatever was left out would break it.
    for item in set(items.tolist()) - set(kept.tolist()):
        assert any(counts[label] >= most for label in labels[item])
