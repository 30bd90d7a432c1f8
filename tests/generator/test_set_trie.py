"""The set trie against brute force over item sets, and what a search may emit under constraints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.errors import ArtifactError
from recsys.generator.constraints import Constraints
from recsys.generator.set_trie import Members, SetTrie
from recsys.generator.set_walk import SetWalk, confident_choice, take_codebook

SIZES = (5, 3, 6)


def random_codes(num_items: int, seed: int, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    flat = np.random.default_rng(seed).choice(int(np.prod(sizes)), size=num_items, replace=False)
    return np.stack(np.unravel_index(flat, sizes), axis=1).astype(np.int64)


def item_sets(members: Members) -> list[set[int]]:
    """The items of every row; also checks the promised order and that no pair occurs twice."""
    keys = members.rows * 1000 + members.items
    assert (keys.diff() > 0).all()
    return [set(members.items[members.rows == row].tolist()) for row in range(members.num_rows)]


@pytest.mark.parametrize("seed", range(5))
def test_allowed_codes_are_exactly_those_of_items_that_own_all_chosen_tokens(seed: int) -> None:
    codes = random_codes(30, seed)
    trie = SetTrie(codes, SIZES)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        item, order = rng.integers(30), rng.permutation(3)
        members: Members | None = None
        possible = set(range(30))
        for codebook in order:
            legal = [trie.legal(members, torch.tensor([asked]))[0] for asked in range(3)]
            for asked in range(3):
                expected = {int(codes[other, asked]) for other in possible}
                assert set(legal[asked].nonzero().squeeze(1).tolist()) == expected
            code = codes[item, codebook]
            possible = {other for other in possible if codes[other, codebook] == code}
            token = torch.tensor([code]) + trie.offsets[codebook]
            members = trie.narrow(members, torch.tensor([0]), token)
            assert item_sets(members) == [possible]
        assert possible == {item}


def test_rows_are_narrowed_together_whatever_their_parents() -> None:
    codes = random_codes(40, 0)
    trie = SetTrie(codes, SIZES)
    first = trie.owners(torch.tensor([0, 5, 8, 13]))
    parents, tokens = torch.tensor([2, 0, 2, 1, 3]), torch.tensor([5, 6, 0, 9, 1])
    narrowed = trie.narrow(first, parents, tokens)
    owners = [set(np.flatnonzero((trie.tokens.numpy() == token).any(axis=1))) for token in range(trie.num_tokens)]
    expected = [owners[[0, 5, 8, 13][p]] & owners[t] for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
    assert item_sets(narrowed) == expected
    assert narrowed.counts().tolist() == [len(items) for items in expected]
    assert item_sets(first.select(torch.tensor([3, 3, 0]))) == [owners[13], owners[13], owners[0]]


def test_codebooks_of_different_sizes_leave_their_last_slots_illegal() -> None:
    trie = SetTrie(np.array([[0, 0, 5], [4, 2, 0]]), SIZES)
    assert trie.width == 6
    legal = trie.legal(None, torch.tensor([0, 1, 2]))
    assert [row.nonzero().squeeze(1).tolist() for row in legal] == [[0, 4], [0, 2], [0, 5]]


@pytest.mark.parametrize(("codes", "message"), [([[0, 1, 0], [0, 1, 0]], "share"), ([[0, 3, 0]], "codebook has 3")])
def test_repeated_and_foreign_codes_are_refused(codes: list[list[int]], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        SetTrie(np.array(codes), SIZES)


def test_the_codebook_with_the_most_probable_legal_code_is_chosen() -> None:
    logits = torch.tensor([[[2.0, 0.0, 9.0], [1.5, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    legal = torch.tensor([[[True, True, False], [True, False, False]], [[True, True, True], [True, True, False]]])
    chosen, log_probs = confident_choice(logits, legal)
    # The illegal 9 counts for nothing, and a lone legal code is certain.
    assert chosen.tolist() == [1, 1]
    torch.testing.assert_close(log_probs[0], torch.tensor([0.0, -torch.inf, -torch.inf]))
    torch.testing.assert_close(log_probs[1].exp(), torch.tensor([0.5, 0.5, 0.0]))


def test_equal_confidence_goes_to_the_first_and_a_dead_row_has_no_way_on() -> None:
    logits, legal = torch.zeros(2, 3, 2), torch.ones(2, 3, 2, dtype=torch.bool)
    legal[1] = False
    chosen, log_probs = confident_choice(logits, legal)
    assert chosen.tolist() == [0, 0]
    assert torch.isneginf(log_probs[1]).all()


def test_a_codebook_is_taken_once() -> None:
    left = take_codebook(torch.tensor([[0, 1, 3], [1, 2, 3]]), torch.tensor([1, 0]))
    assert left.tolist() == [[0, 3], [2, 3]]


class _Uniform:
    """Every legal code of a codebook is equally probable: the codebook with the fewest is chosen."""

    def child_logits(self, state: object, level: int, children) -> torch.Tensor:
        return torch.zeros(children.legal.shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["free", "allow", "allow each", "deny", "both"])
def test_a_walk_over_all_beams_reaches_each_permitted_item_once(seed: int, kind: str) -> None:
    codes = random_codes(40, seed)
    trie = SetTrie(codes, SIZES)
    rng = np.random.default_rng(seed)
    allow = {"allow": rng.random(40) < 0.3, "allow each": rng.random((2, 40)) < 0.3, "both": rng.random((2, 40)) < 0.5}
    deny = [rng.integers(40, size=15), np.zeros(0, dtype=np.int64)] if kind in ("deny", "both") else None
    constraints = Constraints(allow=allow.get(kind), deny=deny)
    walk = SetWalk(trie, constraints, 2)
    scores = torch.zeros(2, 1)
    for level in range(3):
        candidates = scores.unsqueeze(-1) + walk.expand(_Uniform(), None, level)
        alive = walk.alive()
        if alive is not None:
            candidates = candidates.masked_fill(~alive, -torch.inf)
        candidates = candidates.flatten(1)
        best = torch.arange(candidates.shape[1]).expand(2, -1)
        walk.keep(level, best)
        scores = candidates
    found = trie.items[walk.leaves()]
    for request in range(2):
        permitted = np.ones((2, 40), dtype=bool)
        if constraints.allow is not None:
            permitted &= constraints.allow
        permitted = permitted[request]
        if deny is not None:
            permitted[deny[request]] = False
        alive = scores[request] > -torch.inf
        assert sorted(found[request][alive].tolist()) == np.flatnonzero(permitted).tolist()


def test_constraints_of_the_wrong_shape_are_refused() -> None:
    trie = SetTrie(random_codes(10, 0), SIZES)
    with pytest.raises(ValueError, match=r"allow must be \[10\] or \[2, 10\], got \[1, 9\]"):
        SetWalk(trie, Constraints(allow=np.ones(9, dtype=bool)), 2)
    with pytest.raises(ValueError, match="deny must hold one array a request: 2, got 1"):
        SetWalk(trie, Constraints(deny=[np.array([1])]), 2)
