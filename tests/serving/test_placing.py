"""Placing new items looks at those that can be in their way, and finds the same semantic IDs as among all."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.generator.trie import ItemTrie
from recsys.tokenizer import RKMeansConfig, build_tokenizer
from serving.placing import _in_the_way


@pytest.mark.parametrize("collisions", ["assignment", "greedy", "extra_level"])
@pytest.mark.parametrize("codebook_size", [3, 4, 8])
def test_the_items_in_the_way_lead_to_the_same_codes(collisions: str, codebook_size: int) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(24, 6)).astype(np.float32)
    tokenizer = build_tokenizer(
        RKMeansConfig.model_validate(
            {"levels": 3, "codebook_size": codebook_size, "code_dim": 6, "collisions": collisions}
        )
    )
    taken = tokenizer.fit(vectors).codes
    for count in (1, 2, 3):
        # Close to one another, so that they would like the same codes, and to one that is there.
        new = (vectors[:1] + 0.01 * random.normal(size=(count, 6))).astype(np.float32)
        trie = ItemTrie(taken[:24], tokenizer.codebook_sizes)
        near = _in_the_way(tokenizer.encode_raw(new), trie, taken[:24], taken[24:])
        assert set(map(tuple, near.tolist())) <= set(map(tuple, taken.tolist()))
        try:
            expected = tokenizer.encode(new, taken)
        except DataError as error:
            with pytest.raises(DataError, match=str(error)[:20]):
                tokenizer.encode(new, near)
            continue
        np.testing.assert_array_equal(tokenizer.encode(new, near), expected)
        taken = np.concatenate([taken, expected[:1]])


def test_few_of_many_are_in_the_way() -> None:
    random = np.random.default_rng(0)
    taken = np.unique(random.integers(0, 64, size=(5000, 3)), axis=0)
    for sizes in ((64, 64, 64), (1 << 30,) * 3):
        near = _in_the_way(taken[:2], ItemTrie(taken[5:], sizes), taken[5:], taken[:5])
        beside = (taken[:, None, :2] == taken[:2, :2]).all(axis=-1).any(axis=1)
        assert sorted(near.tolist()) == taken[beside].tolist()
        assert 2 <= len(near) <= 20
