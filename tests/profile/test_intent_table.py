from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from film_tags import TAG_CONFIG, film_catalog

from recsys.errors import ArtifactError, ConfigError
from recsys.profile.intents.build import build_table, tag_validity
from recsys.profile.intents.config import IntentBuildConfig, IntentConfig, TableConfig
from recsys.profile.intents.table import IntentTable
from recsys.profile.intents.tags import Part, TagVocabulary

CONFIG = IntentConfig(tags=TAG_CONFIG)
HISTORIES = [[0, 3, 5, 6, 10], [15, 16, 18], []]


@pytest.fixture(scope="module")
def table() -> IntentTable:
    return build_table(film_catalog(), HISTORIES, CONFIG)


def test_the_table_explains_the_best_items_of_the_users_tags(table: IntentTable) -> None:
    assert table.texts["androids Action", "f5"] == "Fits your interest in androids Action: Sci-Fi, from the 1990s."
    assert {item for tag, item in table.texts if tag == "laugh Comedy"} == {"f15", "f16", "f17"}
    assert not [tag for tag, _ in table.texts if "Western" in tag]  # nobody's
    metrics = table.metrics
    assert (metrics["users"], metrics["users_with_interests"]) == (3, 2 / 3)
    assert metrics["explanations"] == len(table.texts)
    assert metrics["explanations_passed"] == 1.0


def test_a_tag_is_valid_if_items_fit_it_better_than_chance() -> None:
    parts = [Part("category", f"kind {number}") for number in range(20)]
    bearers = {part: np.arange(number, 1000, 20) for number, part in enumerate(parts)}
    vocabulary = TagVocabulary(1000, bearers, TAG_CONFIG)
    whole, impossible = vocabulary.tag(parts[0]), vocabulary.tag(parts[0], parts[1])
    assert tag_validity(vocabulary, [whole, impossible, whole, whole]) == 0.75
    assert tag_validity(vocabulary, []) is None


def test_the_same_histories_make_the_same_table(table: IntentTable, tmp_path: Path) -> None:
    for name, one in (("a", table), ("b", build_table(film_catalog(), HISTORIES, CONFIG))):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_table_is_read_back_as_it_was_written(table: IntentTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    read = IntentTable.load(tmp_path, 36)
    assert (read.texts, read.config, read.explainer, read.metrics) == (table.texts, CONFIG, "rules", table.metrics)
    assert read.vocabulary.bearers.keys() == table.vocabulary.bearers.keys()
    for part, items in table.vocabulary.bearers.items():
        np.testing.assert_array_equal(read.vocabulary.bearers[part], items)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".parquet"}


def test_sizes_hold(table: IntentTable) -> None:
    few = build_table(
        film_catalog(), HISTORIES, CONFIG.model_copy(update={"table": TableConfig(items_per_tag=1, max_texts=3)})
    )
    assert len(few.texts) == 3
    assert len({tag for tag, _ in few.texts}) == 3
    one = build_table(film_catalog(), HISTORIES, CONFIG.model_copy(update={"table": TableConfig(max_users=1)}))
    assert one.metrics["users"] == 1


def test_a_catalogue_without_texts_or_users_has_a_table_of_nothing(tmp_path: Path) -> None:
    bare = film_catalog().frame.select(
        "item_id", title=pl.lit(None, pl.String), categories=pl.lit([], pl.List(pl.String))
    )
    empty = build_table(type(film_catalog())(frame=bare), [], CONFIG)
    assert empty.texts == {}
    assert (empty.metrics["tag_validity"], empty.metrics["explanations_passed"]) == (None, None)
    empty.save(tmp_path)
    assert IntentTable.load(tmp_path, 36).vocabulary.bearers == {}


def _wrong_format(folder: Path) -> None:
    facts = json.loads((folder / "intents.json").read_text())
    (folder / "intents.json").write_text(json.dumps(facts | {"format": 9}))


def _no_texts(folder: Path) -> None:
    (folder / "explanations.parquet").unlink()


def _other_columns(folder: Path) -> None:
    pl.DataFrame({"tag": ["x"]}).write_parquet(folder / "explanations.parquet")


def _nulls(folder: Path) -> None:
    frame = pl.read_parquet(folder / "explanations.parquet")
    frame.with_columns(text=pl.lit(None, pl.String)).write_parquet(folder / "explanations.parquet")


def _no_parquet(folder: Path) -> None:
    (folder / "parts.parquet").write_bytes(b"PAR1 but no")


def _unknown_kind(folder: Path) -> None:
    frame = pl.read_parquet(folder / "parts.parquet")
    frame.with_columns(kind=pl.lit("colour")).write_parquet(folder / "parts.parquet")


def _foreign_items(folder: Path) -> None:
    frame = pl.read_parquet(folder / "parts.parquet")
    frame.with_columns(items=pl.lit([36], pl.List(pl.Int64))).write_parquet(folder / "parts.parquet")


@pytest.mark.parametrize(
    "damage", [_wrong_format, _no_texts, _other_columns, _nulls, _no_parquet, _unknown_kind, _foreign_items]
)
def test_a_damaged_table_is_refused_in_one_line(
    table: IntentTable, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    table.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match="recsys intents build") as caught:
        IntentTable.load(tmp_path, 36)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_catalogue_is_refused(table: IntentTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    with pytest.raises(ArtifactError, match="it is of 36 items, the catalogue has 35"):
        IntentTable.load(tmp_path, 35)


def test_settings_are_read_and_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "intents.yaml"
    file.write_text("tags: {min_items: 2}\nchat: {base_url: 'http://127.0.0.1:1/v1', model: m, cache: a.jsonl}\n")
    settings = IntentBuildConfig.load(file)
    assert settings.tags.min_items == 2
    assert settings.chat is not None
    file.write_text("tags: {min_item: 2}\ntable: {max_texts: -1}\n")
    with pytest.raises(ConfigError, match=r"tags\.min_item: .*; table\.max_texts: ") as caught:
        IntentBuildConfig.load(file)
    assert "\n" not in str(caught.value)
