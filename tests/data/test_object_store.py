"""Tables in a store that speaks S3's protocol, through all layers.

Needs `pip install 'recsys[s3]' 'moto[server]'`; skipped without them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import fsspec
import polars as pl
import pytest
from test_sharded_files import SHARDED, assert_same, load, write_shards

from recsys.data import Dataset
from recsys.errors import DataError
from training.batch.tables import open_table

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A file system that has the folder `bucket`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    # A server that ends leaves its buckets to the next one of the process.
    store.makedirs("bucket", exist_ok=True)
    yield store
    server.stop()
    type(store).clear_instance_cache()


@pytest.fixture
def whole(tmp_path: Path) -> Dataset:
    return load(write_shards(tmp_path / "sharded"), **SHARDED)


def test_a_data_set_there_is_the_one_that_lies_here(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, whole: Dataset
) -> None:
    bucket.put(str(tmp_path / "sharded"), "bucket/data", recursive=True)
    assert_same(load("s3://bucket/data", **SHARDED), whole)
    with pytest.raises(DataError, match=r"^data.path: bucket/none/items/\*.parquet cannot be read: FileNotFoundError"):
        load("s3://bucket/none", **SHARDED)


@pytest.mark.parametrize("place", ["s3://bucket/users/", "s3://bucket/users/*.parquet", "s3://bucket/users/b.parquet"])
def test_a_job_reads_its_table_there(bucket: fsspec.AbstractFileSystem, tmp_path: Path, place: str) -> None:
    users = pl.DataFrame({"user_id": ["u", "v", "w"], "item_ids": [["i1"], ["i2", "i3"], []]})
    for name, part in (("a", users[:0]), ("b", users)):
        part.write_parquet(tmp_path / f"{name}.parquet")
        bucket.put(str(tmp_path / f"{name}.parquet"), f"bucket/users/{name}.parquet")
    table = open_table(place, users.columns, "a user")
    assert table.num_rows == 3
    assert table.read(1, 5).equals(users[1:])


@pytest.mark.parametrize("place", ["s3://bucket/none/", "s3://bucket/none.parquet", "s3://elsewhere/users/"])
def test_what_is_not_there_is_named(bucket: fsspec.AbstractFileSystem, place: str) -> None:
    with pytest.raises(DataError, match=place.rstrip("/")):
        open_table(place, ["user_id"], "a user")
