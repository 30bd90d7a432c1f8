"""The benchmark data sets, when they are there: the published sizes, and no titles where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.data import DataConfig, describe, load_dataset, make_split

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("folder", "users", "items", "interactions"),
    [
        ("amazon14_beauty", 22_363, 12_101, 198_502),
        ("amazon14_sports", 35_598, 18_357, 296_337),
        ("amazon18_scientific", 8_317, 4_344, 58_492),
        ("ml_latest_small", 610, 9_742, 100_836),
    ],
)
def test_benchmark_sets_have_their_published_sizes(
    shared_data: Path, folder: str, users: int, items: int, interactions: int
) -> None:
    facts = describe(load_dataset(DataConfig(source="files", path=shared_data / folder)))
    assert (facts["users"], facts["items"], facts["interactions"]) == (users, items, interactions)


def test_beauty_splits_as_in_the_literature(shared_data: Path) -> None:
    config = DataConfig(source="amazon", name="amazon-2014/Beauty", path=shared_data / "amazon14_beauty")
    split = make_split(load_dataset(config).interactions, config)
    assert len(split.train) == len(split.valid) == len(split.test) == 22_363
    assert split.protocol.num_train_interactions == 198_502 - 2 * 22_363
    assert not split.protocol.has_repeats
    for index in (0, 1, 22_362):
        history = split.test.histories[index].tolist()
        assert [*split.train[index].tolist(), int(split.valid.targets[index])] == history
        assert int(split.test.targets[index]) not in history


def test_catalogue_without_titles_loads(shared_data: Path) -> None:
    facts = describe(load_dataset(DataConfig(source="files", path=shared_data / "amazon14_sports")))
    assert facts["text_coverage"]["title"] == 0.0
    assert facts["text_coverage"]["categories"] == 1.0
