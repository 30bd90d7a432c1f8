from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from recsys import download as download_module
from recsys.download import download
from recsys.errors import AssetError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "_RETRY_PAUSE_S", 0.0)


def test_file_arrives_whole_and_leaves_no_traces(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    path = download(file_server.url("a.bin"), tmp_path / "sub" / "a.bin", SHA256)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_finished_file_is_not_requested_again(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    for _ in range(2):
        download(file_server.url("a.bin"), tmp_path / "a.bin", SHA256)
    assert len(file_server.requests) == 1


def test_damaged_file_is_downloaded_again(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin").write_bytes(b"damaged")
    assert download(file_server.url("a.bin"), tmp_path / "a.bin", SHA256).read_bytes() == CONTENT


def test_broken_connection_resumes_where_it_broke(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    file_server.break_after = [1000, 5000]
    assert download(file_server.url("a.bin"), tmp_path / "a.bin", SHA256).read_bytes() == CONTENT
    assert file_server.requests == [None, "bytes=1000-", "bytes=6000-"]


def test_second_call_resumes_what_the_first_left(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    file_server.break_after = [10] * 5
    with pytest.raises(AssetError, match="broke 5 times"):
        download(file_server.url("a.bin"), tmp_path / "a.bin", SHA256)
    assert not (tmp_path / "a.bin").exists()
    assert download(file_server.url("a.bin"), tmp_path / "a.bin", SHA256).read_bytes() == CONTENT
    assert file_server.requests[-1] == "bytes=50-"


def test_file_that_changed_meanwhile_starts_afresh(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = b"old" * 1000
    file_server.break_after = [100] * 5
    with pytest.raises(AssetError):
        download(file_server.url("a.bin"), tmp_path / "a.bin")
    file_server.files["a.bin"], file_server.etags["a.bin"] = CONTENT, '"2"'
    file_server.break_after = []
    assert download(file_server.url("a.bin"), tmp_path / "a.bin").read_bytes() == CONTENT


def test_complete_part_is_only_renamed(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.etag").write_text('"1"')
    assert download(file_server.url("a.bin"), tmp_path / "a.bin", SHA256).read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_wrong_checksum_leaves_nothing(file_server, tmp_path: Path) -> None:
    file_server.files["a.bin"] = CONTENT
    with pytest.raises(AssetError, match=f"SHA-256 is {SHA256}, expected 00"):
        download(file_server.url("a.bin"), tmp_path / "a.bin", "00")
    assert list(tmp_path.iterdir()) == []


def test_refusal_names_the_status(file_server, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="answered 404"):
        download(file_server.url("missing"), tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_closed_port_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="cannot connect"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin")
