"""One file from one URL to one place on disk: streamed, resumed, checked. Does not know what it holds."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from recsys.errors import AssetError
from recsys.files import sha256_file
from recsys.progress import console, progress_bar

# The short connect timeout lets an offline machine go on to the next source; a slow server may answer later.
TIMEOUT = httpx.Timeout(30.0, connect=5.0)

_ATTEMPTS = 5
_RETRY_PAUSE_S = 1.0
_MEGABYTE = 1_000_000


def download(url: str, destination: Path, sha256: str | None = None) -> Path:
    """Fetch `url` into `destination` and return it; a finished `destination` with the right checksum is kept.

    The bytes go to `destination` + ".part", which survives an interruption: the next call asks the server for the
    rest (HTTP Range, guarded by the entity tag, so that a file that changed in between starts afresh). A
    connection that breaks in the middle is retried from where it broke. The file takes its name only when it is
    complete and its SHA-256 matches.

    Raises AssetError when the server cannot be reached, refuses, or sends other bytes than `sha256` promises.
    """
    if destination.exists():
        if sha256 is None or sha256_file(destination) == sha256:
            return destination
        console.print(
            f"{destination} does not match its checksum and is downloaded again",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    tag = destination.with_name(destination.name + ".part.etag")

    with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _stream(client, url, part, tag)
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise AssetError(f"{url}: cannot connect ({error})") from error
            except httpx.HTTPStatusError as error:
                raise AssetError(f"{url}: the server answered {error.response.status_code}") from error
            except httpx.HTTPError as error:
                if attempt == _ATTEMPTS:
                    raise AssetError(
                        f"{url}: the connection broke {_ATTEMPTS} times ({error}); call again to resume"
                    ) from error
                console.print(
                    f"{url}: {error}; resuming ({attempt}/{_ATTEMPTS - 1})",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
                time.sleep(_RETRY_PAUSE_S * attempt)

    tag.unlink(missing_ok=True)
    if sha256 is not None and (actual := sha256_file(part)) != sha256:
        part.unlink()
        raise AssetError(f"{url}: SHA-256 is {actual}, expected {sha256}; the file was deleted")
    part.replace(destination)
    return destination


def _stream(client: httpx.Client, url: str, part: Path, tag: Path) -> None:
    """Append what is missing of `url` to `part`."""
    headers = {"Accept-Encoding": "identity"}  # a compressed transfer has no byte ranges of the file itself
    if part.exists() and tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The part already holds every byte: the run ended between the last byte and the renaming.
            return
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        done = part.stat().st_size if resumed else 0
        # Neither a weak tag ("W/...") nor a compressed transfer promises the same bytes next time.
        etag = response.headers.get("ETag", "")
        if etag and not etag.startswith("W/") and "Content-Encoding" not in response.headers:
            tag.write_text(etag)
        else:
            tag.unlink(missing_ok=True)
        total = done + int(response.headers.get("Content-Length", 0))
        name = part.name.removesuffix(".part")
        with (
            part.open("ab" if resumed else "wb") as file,
            progress_bar(f"download {name} (MB)", max(1, -(-total // _MEGABYTE))) as advance,
        ):
            shown = 0
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                advance(done // _MEGABYTE - shown, "")
                shown = done // _MEGABYTE
