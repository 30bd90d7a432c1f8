"""A bundle may be written over, cut short or replaced while it is served: the service reads copies of its own."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import write_toy_bundle

from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.errors import ArtifactError
from serving import private_copies
from serving.private_copies import PrivateCopies, read


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateCopies]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with PrivateCopies() as copies:
        yield copies
    assert list((tmp_path / "tmp").iterdir()) == []


def _write_over(bundle: Path) -> None:
    """What `cp` of another bundle does: the files stay the same ones, and are cut short first."""
    for file in bundle.rglob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.truncate(0)
            opened.write(os.urandom(4096))


def test_answers_stay_when_the_files_of_the_bundle_are_written_over(tmp_path: Path, copies: PrivateCopies) -> None:
    path = tmp_path / "bundle"
    write_toy_bundle(path)
    expected = Bundle.load(path).recommender.recommend(Sequences.from_lists([[1, 2, 3]]), 10)
    bundle = copies.load(path)
    _write_over(path)
    found = bundle.recommender.recommend(Sequences.from_lists([[1, 2, 3]]), 10)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert bundle.tokenizer.codebook_sizes == (8, 8), "read now, from the copy"
    with pytest.raises(ArtifactError, match="was changed") as refused:
        Bundle.load(path)
    with pytest.raises(ArtifactError, match="was changed") as named:
        copies.load(_moved(path, tmp_path / "other"))
    assert str(tmp_path / "other") in str(named.value)
    assert "recsys-bundles" not in str(refused.value) + str(named.value)


def _moved(path: Path, to: Path) -> Path:
    manifest = path / "manifest.json"
    shutil.copytree(path, to)
    # Else the content is that of the copy which is there.
    (to / "manifest.json").write_text(manifest.read_text().replace('"report.json": "', '"report.json": "0'))
    return to


def test_a_bundle_that_takes_the_place_is_another_copy(tmp_path: Path, copies: PrivateCopies) -> None:
    path = tmp_path / "bundle"
    write_toy_bundle(path)
    pinned = copies.take(path)
    assert copies.take(path) == pinned
    first = read(pinned, path)
    write_toy_bundle(path, seed=3)
    second = copies.load(path)
    assert second.path != pinned
    assert second.manifest.model_version != first.manifest.model_version
    assert read(pinned, path).manifest == first.manifest, "a worker that starts later begins with the same"
    shutil.rmtree(path)
    assert first.tokenizer.codebook_sizes == second.tokenizer.codebook_sizes


def test_a_copy_ends_with_its_bundle_and_the_pinned_one_does_not(tmp_path: Path, copies: PrivateCopies) -> None:
    write_toy_bundle(tmp_path / "a")
    write_toy_bundle(tmp_path / "b", seed=3)
    pinned = copies.take(tmp_path / "a")
    again, other = copies.load(tmp_path / "a"), copies.load(tmp_path / "b")
    copy = other.path
    assert again.path == pinned
    assert copy.is_dir()
    del again, other
    gc.collect()
    assert not copy.exists()
    assert pinned.is_dir()


def test_a_bundle_that_is_loaded_again_does_not_lose_its_copy(tmp_path: Path, copies: PrivateCopies) -> None:
    write_toy_bundle(tmp_path / "a")
    first, second = copies.load(tmp_path / "a"), copies.load(tmp_path / "a")
    copy = first.path
    assert second.path == copy
    del first
    gc.collect()
    assert second.tokenizer.codebook_sizes == (8, 8), "read now, from the copy"
    del second
    gc.collect()
    assert not copy.exists()


def test_what_is_damaged_is_refused_by_the_name_that_was_given(tmp_path: Path, copies: PrivateCopies) -> None:
    path = tmp_path / "bundle"
    write_toy_bundle(path)
    (path / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"report\.json is missing") as caught:
        copies.load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        copies.take(tmp_path / "nothing")
    write_toy_bundle(path)
    assert copies.load(path).manifest.name == "toy"


def test_what_killed_services_have_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    foreign = tmp_path / "recsys-bundles-mine"
    foreign.mkdir()
    with PrivateCopies():
        (alive,) = set(tmp_path.iterdir()) - {foreign}
        gone = tmp_path / "recsys-bundles-gone"
        shutil.copytree(alive, gone)  # no process holds its lock, whatever numbers processes have by now
        with PrivateCopies():
            assert [directory.is_dir() for directory in (gone, alive, foreign)] == [False, True, True]


def test_no_room_is_said_in_one_line(tmp_path: Path, copies: PrivateCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_bundle(tmp_path / "bundle")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private_copies, "_copy", full)
    with pytest.raises(ArtifactError, match=r"No space left on device.*TMPDIR"):
        copies.load(tmp_path / "bundle")
