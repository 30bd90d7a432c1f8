from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from recsys import assets
from recsys.assets import Asset, HubModel, OfficialZip, Wheel, cached, fetch
from recsys.cli.assets import app
from recsys.errors import AssetError


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_wheel(directory: Path, files: dict[str, bytes]) -> str:
    """A wheel that pip accepts, named toy_asset 1.0; returns its SHA-256."""
    info = "toy_asset-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-asset\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    content = make_zip(files | {f"{info}/RECORD": record.encode()})
    (directory / "toy_asset-1.0-py3-none-any.whl").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def toy(file_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset with an official archive (served locally) and a wheel (in a local folder)."""
    archive = make_zip({"toy/u.data": b"official", "toy/README": b"read me", "toy/more": b"not wanted"})
    file_server.files["toy.zip"] = archive
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel_hash = make_wheel(wheels, {"toy_asset/data/u.inter": b"wheel", "toy_asset/code.py": b""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    asset = Asset(
        name="toy",
        kind="data",
        description="a toy",
        official=OfficialZip(
            url=file_server.url("toy.zip"),
            prefix="toy/",
            members=("u.data", "README"),
            md5=hashlib.md5(archive).hexdigest(),
        ),
        wheel=Wheel(requirement="toy-asset==1.0", sha256=wheel_hash, prefix="toy_asset/data/"),
    )
    monkeypatch.setitem(assets.ASSETS, "toy", asset)
    return asset


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_official_source_comes_first_and_only_once(toy: Asset, file_server, tmp_path: Path, capsys) -> None:
    directory = fetch("toy", tmp_path)
    assert names(directory) == ["README", "asset.json", "u.data"]
    assert (directory / "u.data").read_bytes() == b"official"
    assert json.loads((directory / "asset.json").read_text())["source"] == "official site"
    assert "fetched from official site" in capsys.readouterr().err
    assert fetch("toy", tmp_path) == directory == cached("toy", tmp_path)
    assert len(file_server.requests) == 1


def test_wheel_steps_in_and_the_reason_is_told(toy: Asset, file_server, tmp_path: Path, capsys) -> None:
    del file_server.files["toy.zip"]
    directory = fetch("toy", tmp_path)
    assert names(directory) == ["asset.json", "u.inter"]
    captured = capsys.readouterr()
    assert "official site failed" in captured.err
    assert "answered 404" in captured.err
    assert "fetched from wheel toy-asset==1.0" in captured.err
    assert captured.out == ""


def test_page_instead_of_the_archive_is_not_kept(toy: Asset, file_server, tmp_path: Path) -> None:
    page = b"<html>please log in</html>"
    file_server.files["toy.zip"] = page
    official = dataclasses.replace(toy.official, md5=hashlib.md5(page).hexdigest())
    assets.ASSETS["toy"] = dataclasses.replace(toy, official=official, wheel=None)
    with pytest.raises(AssetError, match="not a readable archive"):
        fetch("toy", tmp_path)
    assert not list(tmp_path.rglob("*.zip"))


def test_changed_archive_is_refused(toy: Asset, file_server, tmp_path: Path, capsys) -> None:
    file_server.files["toy.zip"] = make_zip({"toy/u.data": b"changed", "toy/README": b""})
    assert "u.inter" in names(fetch("toy", tmp_path))
    assert "MD5 is" in capsys.readouterr().err


def test_every_reason_is_named_when_no_source_delivers(toy: Asset, file_server, tmp_path: Path) -> None:
    del file_server.files["toy.zip"]
    assets.ASSETS["toy"] = dataclasses.replace(toy, wheel=dataclasses.replace(toy.wheel, sha256="00"))
    with pytest.raises(AssetError, match=r"official site: .*404; wheel toy-asset==1.0: SHA-256 of toy_asset"):
        fetch("toy", tmp_path)
    assert cached("toy", tmp_path) is None
    assert not list((tmp_path / "assets").iterdir())


def test_package_that_no_index_has_is_a_reason(toy: Asset, tmp_path: Path) -> None:
    wheel = dataclasses.replace(toy.wheel, requirement="toy-asset==2.0")
    assets.ASSETS["toy"] = dataclasses.replace(toy, official=None, wheel=wheel)
    with pytest.raises(AssetError, match=r"No matching distribution found for toy-asset==2.0"):
        fetch("toy", tmp_path)


def test_wrong_member_checksum_is_refused(toy: Asset, tmp_path: Path) -> None:
    assets.ASSETS["toy"] = dataclasses.replace(toy, official=None, sha256={"u.inter": "00"})
    with pytest.raises(AssetError, match=r"SHA-256 of u.inter is .*, expected 00"):
        fetch("toy", tmp_path)
    assert cached("toy", tmp_path) is None


def test_source_without_a_pinned_file_is_passed_over(toy: Asset, tmp_path: Path, capsys) -> None:
    assets.ASSETS["toy"] = dataclasses.replace(toy, sha256={"u.inter": hashlib.sha256(b"wheel").hexdigest()})
    assert "u.inter" in names(fetch("toy", tmp_path))
    assert "official site failed: the source lacks u.inter" in capsys.readouterr().err


def test_missing_pip_is_the_reason_told(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{python}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assets.ASSETS["toy"] = dataclasses.replace(toy, official=None)
    with pytest.raises(AssetError, match=r"pip download failed: .*: No module named pip"):
        fetch("toy", tmp_path)


def test_archive_cannot_write_outside_of_its_directory(toy: Asset, tmp_path: Path) -> None:
    wheel_hash = make_wheel(tmp_path / "wheels", {"toy_asset/data/../../../evil": b"x"})
    assets.ASSETS["toy"] = dataclasses.replace(
        toy, official=None, wheel=dataclasses.replace(toy.wheel, sha256=wheel_hash)
    )
    with pytest.raises(AssetError, match="outside of itself"):
        fetch("toy", tmp_path)
    assert not list(tmp_path.rglob("evil"))


def test_unreachable_hub_is_a_reason_and_not_a_wait(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    hub = HubModel(repository="nobody/nothing", patterns=("*.json",))
    assets.ASSETS["toy"] = dataclasses.replace(toy, official=None, hub=hub)
    assert "u.inter" in names(fetch("toy", tmp_path))
    assert "Hub nobody/nothing failed: cannot connect" in capsys.readouterr().err


def test_incomplete_cache_is_fetched_again(toy: Asset, tmp_path: Path) -> None:
    directory = fetch("toy", tmp_path)
    (directory / "u.data").write_bytes(b"")
    assert cached("toy", tmp_path) is None
    assert (fetch("toy", tmp_path) / "u.data").read_bytes() == b"official"


def test_directories_without_files_are_made(toy: Asset, tmp_path: Path) -> None:
    assets.ASSETS["toy"] = dataclasses.replace(toy, empty_directories=("2_Normalize",))
    assert (fetch("toy", tmp_path) / "2_Normalize").is_dir()


def test_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"unknown asset 'ml-100'; known: .*ml-100k"):
        fetch("ml-100", tmp_path)


def test_cli_lists_and_fetches(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path))
    fetched = CliRunner().invoke(app, ["fetch", "toy"])
    assert fetched.stdout.strip() == str(tmp_path / "assets" / "toy")
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)}
    assert rows["toy"]["path"] == str(tmp_path / "assets" / "toy")
    assert rows["toy"]["sources"] == ["official site", "wheel"]
    assert rows["ml-1m"]["path"] is None
    assert "all-minilm-l6-v2" in CliRunner().invoke(app, ["list"]).stdout
