"""Vectors and semantic IDs of items as a job: of known items the bundle's own, of others by their text."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy_bundle import NUM_ITEMS, write_toy_bundle
from toy_encoder import write_toy_encoder
from typer.testing import CliRunner

import training.batch.run
from recsys.bundle import Bundle
from recsys.cli.main import build_app
from recsys.data import Catalog
from recsys.encoder.text import item_texts
from recsys.errors import ArtifactError, ConfigError, DataError
from training.batch.job import plan_job
from training.batch.run import run_job
from training.batch.shards import Job, Shard
from training.batch.vectors import VectorJob, plan_vectors

WORDS = ("film", "number", "drama", "comedy", "noir", "heist", "year", *map(str, range(100)))
ITEMS = {
    "item_id": ["n0", "i5", "n1", "i39", "n2", "n3"],
    "title": ["Film number 41", "Other", " Heist 7 ", None, None, "Film number 41"],
    "categories": [["Drama"], ["Noir"], ["Heist", "Noir"], [], None, ["Drama"]],
    "year": [1991, 1992, None, None, None, 1991],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("names")
    write_toy_bundle(directory / "toy", encoder=write_toy_encoder(directory, WORDS, 16))
    return directory / "toy"


@pytest.fixture
def items(tmp_path: Path) -> str:
    return table_of(tmp_path / "items.parquet", ITEMS)


def table_of(path: Path, columns: dict[str, list[Any]]) -> str:
    pl.DataFrame(columns).write_parquet(path)
    return str(path)


def job_of(bundle: Path, out: Path, items: str | None = None, shard_size: int = 2) -> VectorJob:
    return plan_vectors(bundle, out, items=items, shard_size=shard_size)


def rows_in(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "*.parquet")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def test_items_of_the_bundle_have_its_own_vectors_and_codes(bundle: Path, tmp_path: Path) -> None:
    document = run_job(job_of(bundle, tmp_path, shard_size=15))
    frame, loaded = rows_in(tmp_path), Bundle.load(bundle)
    assert frame["item_id"].to_list() == loaded.catalog.item_ids
    assert frame.schema["vector"] == pl.Array(pl.Float32, 16)
    assert frame.schema["codes"] == pl.Array(pl.Int32, 2)
    np.testing.assert_array_equal(frame["vector"].to_numpy(), loaded.embeddings.vectors)
    np.testing.assert_array_equal(frame["codes"].to_numpy(), loaded.semantic_ids.codes)
    assert frame["is_known"].all()
    assert set(frame["model_version"]) == {loaded.manifest.model_version}
    assert (document["num_items"], document["num_known"], document["made_items"]) == (NUM_ITEMS, NUM_ITEMS, NUM_ITEMS)
    names = sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".")
    assert names == ["_SUCCESS", "_manifest.json", *(f"part-0000{number}.parquet" for number in range(3))]


def test_other_items_are_placed_by_their_text(bundle: Path, tmp_path: Path, items: str) -> None:
    document = run_job(job_of(bundle, tmp_path / "out", items, shard_size=3))
    frame, loaded = rows_in(tmp_path / "out"), Bundle.load(bundle)
    assert frame["item_id"].to_list() == ITEMS["item_id"]
    assert frame["is_known"].to_list() == [False, True, False, True, False, False]
    known, new = frame.filter("is_known"), frame.filter(~pl.col("is_known"))
    at = loaded.catalog.index_of(["i5", "i39"])
    np.testing.assert_array_equal(known["vector"].to_numpy(), loaded.embeddings.vectors[at])
    np.testing.assert_array_equal(known["codes"].to_numpy(), loaded.semantic_ids.codes[at])
    as_catalogue = pl.DataFrame(
        {
            "item_id": ["n0", "n1", "n2", "n3"],
            "title": ["Film number 41", "Heist 7", None, "Film number 41"],
            "categories": [["Drama"], ["Heist", "Noir"], [], ["Drama"]],
            "year": ["1991", None, None, "1991"],
        }
    )
    texts = item_texts(Catalog(frame=as_catalogue), loaded.embeddings.encoder)
    vectors = loaded.embeddings.match(loaded.text_encoder.encode(texts))
    np.testing.assert_allclose(new["vector"].to_numpy(), vectors, atol=1e-5)
    np.testing.assert_array_equal(new["codes"].to_numpy(), loaded.tokenizer.encode_raw(vectors))
    assert new["codes"][0].to_list() == new["codes"][3].to_list()  # twins collide
    assert (document["num_known"], document["num_without_text"]) == (2, 1)


def test_a_folder_of_items_with_whole_numbers_as_ids_is_read(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    for number in range(2):
        table_of(tmp_path / "items" / f"{number}.parquet", {**ITEMS, "item_id": range(6 * number, 6 * number + 6)})
    run_job(job_of(bundle, tmp_path / "out", str(tmp_path / "items"), shard_size=5))
    assert rows_in(tmp_path / "out")["item_id"].to_list() == [str(number) for number in range(12)]


def test_a_table_of_known_items_needs_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_bundle(tmp_path / "toy")
    monkeypatch.setattr(Bundle, "text_encoder", None)
    run_job(job_of(tmp_path / "toy", tmp_path / "out", shard_size=40))
    assert len(rows_in(tmp_path / "out")) == NUM_ITEMS


def test_finished_files_are_kept_and_damaged_ones_made_again(
    bundle: Path, tmp_path: Path, items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job, made = job_of(bundle, out, items), []
    run_job(job)
    before = contents(out)

    def counted(job: Job, number: int) -> Shard:
        made.append(number)
        return job.make(number)

    monkeypatch.setattr(training.batch.run, "make_shard", counted)
    document = run_job(job)
    assert (document["kept_shards"], document["made_shards"], document["items_per_second"]) == (3, 0, None)
    assert (document["num_known"], document["num_without_text"]) == (2, 1)
    (out / "part-00001.parquet").write_bytes(b"PAR1")
    assert run_job(job)["kept_shards"] == 2
    assert made == [1]
    assert contents(out) == before


_KILLED = """
import sys
from pathlib import Path
import training.batch.run as run
from training.batch.vectors import plan_vectors

def make(job, number):
    if number == 2:
        print("in the middle", flush=True)
        sys.stdin.read()
    return job.make(number)

run.make_shard = make
run.run_job(plan_vectors(Path(sys.argv[1]), Path(sys.argv[2]), items=sys.argv[3], shard_size=2))
"""


def test_a_job_that_was_killed_in_the_middle_goes_on(bundle: Path, tmp_path: Path, items: str) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(bundle), str(out), items], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in the middle\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert sorted(finished) == ["part-00000.parquet", "part-00001.parquet"]
    assert not (out / "_SUCCESS").exists()
    document = run_job(job_of(bundle, out, items))
    assert (document["kept_shards"], document["made_shards"]) == (2, 1)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert rows_in(out)["item_id"].to_list() == ITEMS["item_id"]
    assert (out / "_SUCCESS").exists()


def test_another_job_is_refused_in_the_same_folder(bundle: Path, tmp_path: Path, items: str) -> None:
    out, lists = tmp_path / "out", tmp_path / "lists"
    run_job(job_of(bundle, out, items, shard_size=6))
    before = contents(out)
    with pytest.raises(ConfigError, match=r"holds another job: shard_size is 6 there and 5 here; name a new folder"):
        run_job(job_of(bundle, out, items, shard_size=5))
    renamed = table_of(tmp_path / "renamed.parquet", {**ITEMS, "title": ["Heist"] * 6})
    with pytest.raises(ConfigError, match=r"holds another job: items is \w+ there and \w+ here"):
        run_job(job_of(bundle, out, renamed, shard_size=6))
    users = plan_job(bundle, out, k=4, shard_size=6, include_seen=False)
    with pytest.raises(ConfigError, match=r"holds the job of another command, without histories; name a new folder"):
        run_job(users)
    assert contents(out) == before
    run_job(plan_job(bundle, lists, k=4, shard_size=12, include_seen=False))
    with pytest.raises(ConfigError, match="holds the job of another command, without items"):
        run_job(job_of(bundle, lists, items))


def test_a_bundle_that_changes_under_the_job_is_noticed(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy", seed=2)
    job = job_of(tmp_path / "toy", tmp_path / "out")
    write_toy_bundle(tmp_path / "toy", seed=3)
    with pytest.raises(ArtifactError, match="by now, the job began with"):
        run_job(job)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"item_id": None}, r"items.parquet: no column 'item_id'; there are title, categories, year, and needed are"),
        (
            {"year": None},
            r"no column 'year'; there are .*, categories, and needed are item_id, title, year, categories",
        ),
        ({"item_id": ["n0", "n0", "n1", "n2", "n3", "n4"]}, r"1 of 6 rows name an item again by 'item_id'; keep one"),
        ({"item_id": ["n0", None, "n1", "n2", "n3", "n4"]}, r"'item_id' has no value in 1 of 6 rows"),
        ({"item_id": [0.5, 1, 2, 3, 4, 5]}, r"'item_id' is not a whole number"),
        ({"categories": ["Drama"] * 6}, r"'categories' must hold lists of text, found String"),
        ({"title": [["Film"]] * 6}, r"'title' must hold text, found List"),
        ({name: [] for name in ITEMS}, r"the table has no rows"),
    ],
)
def test_bad_tables_of_items_are_refused(
    bundle: Path, tmp_path: Path, changed: dict[str, list[Any] | None], message: str
) -> None:
    columns = {name: values for name, values in {**ITEMS, **changed}.items() if values is not None}
    items = table_of(tmp_path / "items.parquet", columns)
    with pytest.raises(DataError, match=message):
        run_job(job_of(bundle, tmp_path / "out", items))


def test_the_command_says_what_it_made(
    bundle: Path, tmp_path: Path, items: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", str(bundle), str(tmp_path / "out"), "--items", items, "--shard-size", "4"]
    first = CliRunner().invoke(build_app(), arguments)
    assert first.exit_code == 0
    assert f"6 vectors in 2 files of {tmp_path / 'out'}\n6 vectors made in " in first.stdout
    assert "4 items are not in the bundle: their codes are the nearest ones, and may collide\n" in first.stdout
    assert "1 of those have no text: their vectors say nothing\n" in first.stdout
    CliRunner().invoke(build_app(), [*arguments, "--json"])
    document = json.loads(capfd.readouterr().out)
    assert (document["kept_shards"], document["made_shards"], document["num_known"]) == (2, 0, 2)
    refused = CliRunner().invoke(build_app(), ["embed", "nowhere", str(tmp_path / "out")])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "no bundle at 'nowhere'; name a bundle, or a run" in refused.stderr
