"""The stage `data`: what it is made under, what it leaves, and what a killed attempt leaves to it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.data import Split
from recsys.errors import DataError
from recsys.files import sha256_file
from training.config import RunConfig, load_config, parse_config
from training.pipeline import run_stages
from training.stages import data

EVENTS = pl.DataFrame({"user_id": list("uvwuvwuvwu"), "item_id": list("abcabcddda"), "timestamp": range(10)})


def write_tables(folder: Path) -> None:
    folder.mkdir()
    pl.DataFrame({"item_id": list("abcd")}).write_parquet(folder / "items.parquet")
    EVENTS.write_parquet(folder / "interactions.parquet")
    (folder / "log").mkdir()
    for begin in (0, 4, 8):
        EVENTS[begin : begin + 4].write_parquet(folder / "log" / f"{begin}.parquet")


def configured(folder: Path | str, **settings: Any) -> RunConfig:
    section = {"source": "files", "path": folder, **settings}
    return parse_config({"data": section, "tokenizer": {"method": "rkmeans"}, "evaluation": {"baselines": []}}, "test")


def files_of(run_dir: Path) -> dict[str, bytes]:
    files = [path for path in (run_dir / "data").rglob("*") if path.is_file() and path.name != ".stage.json"]
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in files}


def test_files_that_a_table_is_divided_into_change_nothing_of_the_result(tmp_path: Path) -> None:
    write_tables(tmp_path / "shop")
    run_stages(tmp_path / "whole", [data.stage(configured(tmp_path / "shop"))])
    run_stages(tmp_path / "parts", [data.stage(configured(tmp_path / "shop", interactions="log"))])
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    made = tmp_path / "whole" / "data"
    assert [items.tolist() for items in data.load_split(made).train] == [[0, 0], [1], [2]]
    assert data.load_catalog(made).item_ids == list("abcd")
    assert data.load_interactions(made).user_ids == list("uvw")


def test_single_files_are_in_the_key_by_name_and_content(tmp_path: Path) -> None:
    write_tables(tmp_path / "shop")
    settings = data.stage(configured(tmp_path / "shop")).settings
    names = ("items.parquet", "interactions.parquet")
    assert settings["files"] == {name: sha256_file(tmp_path / "shop" / name) for name in names}
    assert "path" not in settings


def test_a_stage_that_was_killed_begins_anew_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tables(tmp_path / "shop")
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    stage = data.stage(configured(tmp_path / "shop", interactions="log"))
    run_dir = tmp_path / "run"
    run_stages(tmp_path / "other", [stage])

    def killed(split: Split, directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Split, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages(run_dir, [stage])
    left = run_dir / "data.partial" / "resume" / "scratch" / "log"
    left.mkdir(parents=True)
    (left / "events-7.parquet").write_text("half of a file")
    run_stages(run_dir, [stage])
    assert files_of(run_dir) == files_of(tmp_path / "other")
    assert sorted(path.name for path in run_dir.iterdir()) == ["data"]
    assert list((tmp_path / "system").iterdir()) == []


def test_a_url_is_kept_as_it_is_given(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("data: {source: files, path: 'memory://shop/log'}\ntokenizer: {method: rkmeans}\n")
    assert load_config(config).data.path == "memory://shop/log"
    assert load_config(config).data.dataset_name == "log"
    with pytest.raises(
        DataError, match=r"data.path: no /shop/log/items.parquet, /shop/log/interactions.parquet; check"
    ):
        data.stage(load_config(config))
