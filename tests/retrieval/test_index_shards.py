"""Shards of an index: against brute force and one undivided index, built by several processes, and after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import brute_force, permitted_by, whole_numbers

from recsys.errors import ArtifactError, DataError
from recsys.files import sha256_file
from recsys.generator import Constraints
from recsys.retrieval import shards
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.shards import IndexBuild, IndexKind, Template, choose_num_shards, parts

APPROXIMATE: tuple[IndexKind, ...] = ("hnsw", "ivf_pq", "ivf_rabitq")


def clustered(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, 16))
    return (centres[random.integers(0, 20, count)] + 0.3 * random.normal(size=(count, 16))).astype(np.float32)


def undivided(vectors: np.ndarray, kind: IndexKind) -> Any:
    """The index of Faiss that an index of one shard is, made without a template."""
    count, dim = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
        index.add(vectors)
        return index
    cells = min(int(2 ** round(np.log2(4 * np.sqrt(count)))), count // 39)
    if kind == "ivf_pq":
        index = faiss.index_factory(dim, f"IVF{cells},PQ16x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
        faiss.ParameterSpace().set_index_parameters(index, "nprobe=16,k_factor_rf=8")
    else:
        scaled = vectors / np.linalg.norm(vectors, axis=1).max()
        vectors = np.concatenate([scaled, np.sqrt(1 - np.einsum("nd,nd->n", scaled, scaled))[:, None]], axis=1)
        index = faiss.index_factory(dim + 1, f"IVF{cells},RaBitQ", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 16
    index.train(vectors)
    index.add(vectors)
    return index


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_one_shard_is_the_undivided_index_to_the_last_bit(kind: IndexKind, tmp_path: Path) -> None:
    vectors = clustered(1500)
    built, saved = tmp_path / "built", tmp_path / "saved"
    for directory in (built, saved):
        directory.mkdir()
    ItemIndex.build(built, vectors, kind)
    ItemIndex(vectors, kind).save(saved)
    expected = faiss.serialize_index(undivided(vectors, kind)).tobytes()
    for directory in (built, saved):
        assert {path.name for path in directory.iterdir()} == {"index.json", "index-00000.faiss"}
        assert (directory / "index-00000.faiss").read_bytes() == expected
    assert (built / "index.json").read_text() == (saved / "index.json").read_text()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_items=st.integers(60, 700),
    num_shards=st.integers(2, 7),
    n=st.integers(1, 40),
    share=st.sampled_from([None, 0.05, 0.4]),
)
def test_codes_of_one_bit_find_the_same_in_any_number_of_shards(
    seed: int, num_items: int, num_shards: int, n: int, share: float | None
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(num_items, 12)).astype(np.float32)
    queries = random.normal(size=(5, 12)).astype(np.float32)
    held = Constraints(
        allow=None if share is None else random.random(num_items) < share,
        deny=[random.integers(0, num_items, 4) for _ in queries],
    )
    whole, divided = ItemIndex(vectors, "ivf_rabitq"), ItemIndex(vectors, "ivf_rabitq", num_shards=num_shards)
    expected, hits = whole.search(queries, n, held), divided.search(queries, n, held)
    np.testing.assert_array_equal(hits.items, expected.items)
    np.testing.assert_array_equal(hits.scores, expected.scores)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_shards_together_find_most_and_keep_every_constraint(kind: IndexKind) -> None:
    vectors, random = clustered(3000), np.random.default_rng(1)
    queries = vectors[random.choice(3000, 40, replace=False)]
    index = ItemIndex(vectors, kind, num_shards=3)
    deny = [random.choice(3000, 50, replace=False) for _ in queries]
    for held in (Constraints(), Constraints(allow=random.random((40, 3000)) < 0.5, deny=deny)):
        hits, permitted = index.search(queries, 10, held), permitted_by(held, (40, 3000))
        assert np.take_along_axis(permitted, hits.items, axis=1).all()
        expected, _ = brute_force(vectors, queries, 10, permitted)
        assert np.mean([len(np.intersect1d(*rows)) / 10 for rows in zip(hits.items, expected, strict=True)]) > 0.9
        np.testing.assert_allclose(hits.scores, np.einsum("bd,bkd->bk", queries, vectors[hits.items]), rtol=1e-4)
    few = Constraints(allow=np.isin(np.arange(3000), [5, 1200, 2999]))
    expected, _ = brute_force(vectors, queries, 6, permitted_by(few, (40, 3000)))
    np.testing.assert_array_equal(index.search(queries, 6, few).items, expected)
    further = vectors[:2] * 3
    assert set(index.with_rows(further).search(further, 1).items[:, 0]) <= {3000, 3001}


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_shards_are_files_that_are_built_apart_and_mapped_together(kind: IndexKind, tmp_path: Path) -> None:
    vectors, queries = clustered(900), clustered(8, seed=1)
    expected = ItemIndex(vectors, kind, num_shards=3).search(queries, 9)
    build = IndexBuild.begin(tmp_path, vectors, kind, 3)
    other = IndexBuild.join(tmp_path, vectors.copy())
    assert other.num_shards == 3
    with pytest.raises(ArtifactError, match=r"lacks the shards \[0, 1, 2\]"):
        build.finish()
    assert [other.make(2), build.make(0), build.make(2), build.make(1)] == [True, True, False, True]
    with pytest.raises(ArtifactError, match="cannot read"):
        ItemIndex.load(tmp_path, vectors)
    build.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"index.json", *(f"index-0000{n}.faiss" for n in range(3))}
    loaded = ItemIndex.load(tmp_path, vectors)
    hits = loaded.search(queries, 9)
    np.testing.assert_array_equal(hits.items, expected.items)
    np.testing.assert_array_equal(hits.scores, expected.scores)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or all(str(tmp_path / f"index-0000{n}.faiss") in maps.read_text() for n in range(3))


@pytest.mark.parametrize("is_begun", [False, True])
def test_who_comes_late_leaves_a_finished_index_as_it_is(
    is_begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(300)
    build = IndexBuild.begin(tmp_path, vectors, "hnsw", 2)
    late = IndexBuild.join(tmp_path, vectors)

    def finish() -> dict[str, int]:
        for number in range(2):
            build.make(number)
        build.finish()
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    if is_begun:
        shard, left = Template.shard, {}

        def overtaken(self: Template, rows: np.ndarray, number: int) -> Any:
            monkeypatch.setattr(Template, "shard", shard)
            left.update(finish())
            return shard(self, -rows, number)  # as another number of threads does

        monkeypatch.setattr(Template, "shard", overtaken)
        assert not late.make(1)
    else:
        left = finish()
    assert not late.make(0)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == left
    ItemIndex.load(tmp_path, vectors)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.shards import Template
make = Template.shard
def shard(template, vectors, number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(template, vectors, number)
Template.shard = shard
ItemIndex.build(Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3], num_shards=4)
"""


def test_a_build_that_was_killed_goes_on_with_the_shards_that_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: IndexKind = "ivf_rabitq"
    vectors, queries = clustered(800), clustered(5, seed=1)
    np.save(tmp_path / "vectors.npy", vectors)
    place = tmp_path / "index"
    place.mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, place, tmp_path / "vectors.npy", kind], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name: path.stat().st_mtime_ns for path in place.glob("index-0000?.faiss")}
    assert sorted(left) == ["index-00000.faiss", "index-00001.faiss"]
    made, make = [], Template.shard
    monkeypatch.setattr(Template, "fit", lambda *_: pytest.fail("what shards share was there"))
    monkeypatch.setattr(Template, "shard", lambda self, rows, number: made.append(number) or make(self, rows, number))
    index = ItemIndex.build(place, vectors, kind, num_shards=4)
    assert made == [2, 3]
    assert {name: (place / name).stat().st_mtime_ns for name in left} == left
    monkeypatch.undo()
    expected = ItemIndex(vectors, kind, num_shards=4).search(queries, 7)
    np.testing.assert_array_equal(index.search(queries, 7).items, expected.items)
    monkeypatch.setattr(shards.IndexBuild, "begin", lambda *_: pytest.fail("the index was finished"))
    np.testing.assert_array_equal(
        ItemIndex.build(place, vectors, kind, num_shards=4).search(queries, 7).items, expected.items
    )


TOGETHER = """
import sys
from pathlib import Path
import numpy as np
import torch.distributed as dist
from recsys.ranks import Ranks
from recsys.retrieval.index import ItemIndex
place, vectors, rank = Path(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{place}.meeting", rank=rank, world_size=2)
index = ItemIndex.build(place, vectors, "hnsw", num_shards=3, ranks=Ranks(rank=rank, size=2))
np.save(f"{place}.found{rank}.npy", index.search(vectors[:20], 8).items)
dist.destroy_process_group()
"""


def test_two_processes_build_one_index(tmp_path: Path) -> None:
    vectors = clustered(700)
    np.save(tmp_path / "vectors.npy", vectors)
    place = tmp_path / "index"
    place.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, place, tmp_path / "vectors.npy", str(rank)])
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected = ItemIndex(vectors, "hnsw", num_shards=3).search(vectors[:20], 8).items
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(f"{place}.found{rank}.npy"), expected)


def test_what_another_build_left_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    vectors = clustered(600)

    def made(vectors: np.ndarray, kind: IndexKind, num_shards: int) -> list[bool]:
        build = IndexBuild.begin(tmp_path, vectors, kind, num_shards)
        return [build.make(number) for number in range(num_shards)]

    assert made(vectors, "ivf_rabitq", 2) == [True, True]
    assert made(vectors, "ivf_rabitq", 2) == [False, False]
    # Damaged since: made again.
    (tmp_path / "index-00001.faiss").write_bytes(b"x")
    assert made(vectors, "ivf_rabitq", 2) == [False, True]
    (tmp_path / "index-template.faiss").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"index-template\.faiss was changed"):
        IndexBuild.join(tmp_path, vectors)
    # What is fitted to the same vectors in the same way is the same, and so are the shards.
    assert made(vectors, "ivf_rabitq", 2) == [False, False]
    assert made(vectors, "ivf_rabitq", 3) == [True] * 3
    assert made(-vectors, "ivf_rabitq", 3) == [True] * 3
    assert made(-vectors, "hnsw", 3) == [True] * 3
    with pytest.raises(ArtifactError, match="of other vectors"):
        IndexBuild.join(tmp_path, vectors)
    (tmp_path / "index-build.json").write_text("[]")
    with pytest.raises(ArtifactError, match="nothing to join"):
        IndexBuild.join(tmp_path, vectors)
    assert made(-vectors, "hnsw", 3) == [False] * 3


def test_a_changed_shard_is_refused_before_faiss_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, place, other = clustered(300), tmp_path / "index", tmp_path / "other"
    for directory, of in ((place, vectors), (other, -vectors)):
        directory.mkdir()
        ItemIndex.build(directory, of, "hnsw", num_shards=2)
    whole = (place / "index-00001.faiss").read_bytes()
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("reached Faiss"))
    for damaged in (whole[:-1], whole[:-9] + b"\xff" + whole[-8:], (other / "index-00001.faiss").read_bytes()):
        (place / "index-00001.faiss").write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"index-00001\.faiss was changed; build it again"):
            ItemIndex.load(place, vectors)
    (place / "index-00001.faiss").unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        ItemIndex.load(place, vectors)
    monkeypatch.undo()
    # As the error says.
    assert ItemIndex.build(place, vectors, "hnsw", num_shards=2).search(vectors[:1], 1).items == 0


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_of_the_first_format_is_read_and_replaced(kind: IndexKind, tmp_path: Path) -> None:
    vectors = whole_numbers((300, 8), 0)
    index = ItemIndex(vectors, kind)
    index.save(tmp_path)
    now = json.loads((tmp_path / "index.json").read_text())
    facts = {"format": 1, "kind": kind, "vectors_sha256": now["vectors_sha256"], "faiss_sha256": None}
    if kind == "hnsw":
        (tmp_path / "index-00000.faiss").rename(tmp_path / "index.faiss")
        facts["faiss_sha256"] = sha256_file(tmp_path / "index.faiss")
    (tmp_path / "index.json").write_text(json.dumps(facts))
    loaded = ItemIndex.load(tmp_path, vectors)
    np.testing.assert_array_equal(loaded.search(vectors[:9], 5).items, index.search(vectors[:9], 5).items)
    if kind == "hnsw":
        copied = shutil.copytree(tmp_path, tmp_path / "copied")
        (copied / "index.faiss").write_bytes(b"x")
        with pytest.raises(ArtifactError, match=r"index\.faiss was changed"):
            ItemIndex.load(copied, vectors)
        shutil.rmtree(copied)
    loaded.save(tmp_path)
    files = {"index.json"} if kind == "flat" else {"index.json", "index-00000.faiss"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_an_index_of_fewer_shards_leaves_none_of_more(tmp_path: Path) -> None:
    vectors = clustered(200)
    ItemIndex(vectors, "hnsw", num_shards=3).save(tmp_path)
    ItemIndex.build(tmp_path, vectors, "hnsw", num_shards=2)
    assert {path.name for path in tmp_path.iterdir()} == {"index.json", "index-00000.faiss", "index-00001.faiss"}
    ItemIndex.build(tmp_path, vectors, "flat")
    assert {path.name for path in tmp_path.iterdir()} == {"index.json"}


def test_shards_are_bounded_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD_ROWS", 100)
    assert [choose_num_shards("hnsw", count) for count in (1, 100, 101, 250)] == [1, 1, 2, 3]
    assert choose_num_shards("flat", 250) == 1
    assert [len(part) for part in parts(np.zeros((250, 1), np.float32), 3)] == [83, 83, 84]
    for number in (0, 251):
        with pytest.raises(DataError, match=f"at least one shard, .* got 250 for {number}; choose fewer shards"):
            ItemIndex(np.ones((250, 2), np.float32), "hnsw", num_shards=number)
    with pytest.raises(DataError, match="kind flat is not divided, got 2 shards"):
        ItemIndex(np.ones((250, 2), np.float32), "flat", num_shards=2)


def test_vectors_that_are_too_few_for_codes_are_refused_and_the_fewest_are_found(tmp_path: Path) -> None:
    expected = "at least 16 vectors, got 15; choose the kind flat"
    few, enough = clustered(15), clustered(16)
    with pytest.raises(DataError, match=expected):
        ItemIndex(few, "ivf_pq")
    with pytest.raises(DataError, match=expected):
        ItemIndex.build(tmp_path, few, "ivf_pq")
    assert not list(tmp_path.iterdir())
    for num_shards in (1, 16):
        hits = ItemIndex(enough, "ivf_pq", num_shards=num_shards).search(enough, 3)
        np.testing.assert_array_equal(hits.items, brute_force(enough, enough, 3, np.ones((16, 16), dtype=bool))[0])
