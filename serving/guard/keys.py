"""API keys: made, kept as hashes in a file, and recognised. Knows no HTTP.

A key carries 256 random bits, so nobody can find it by trying, and one round of SHA-256 hides it as well as a slow
password hash would; a slow hash would only make every request, and every attack on the CPU, dearer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, ValidationError

from recsys.config import StrictConfig
from recsys.errors import ConfigError
from serving.guard.roles import Role

MAX_LIVE_KEYS = 2
"""Keys that one client may hold at a time: the one in use, and its successor while the client changes over."""
_RELOAD_S = 5.0

_log = structlog.get_logger(__name__)


class StoredKey(StrictConfig):
    """What is kept of a key."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """The client that it belongs to: letters, digits, `.`, `_` and `-`. Logs and limits know the client by it."""
    role: Role
    """What it may do."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The hash of the key, in hexadecimal digits."""
    created_at: datetime
    """When it was made."""

    @property
    def id(self) -> str:
        """Tells keys of one client apart, and gives nothing of the key away."""
        return self.sha256[:8]


class _KeyFile(StrictConfig):
    """The file of keys."""

    keys: tuple[StoredKey, ...]


def read_keys(path: Path) -> tuple[StoredKey, ...]:
    """The keys of a file.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return _KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise ConfigError(f"keys: {path} cannot be read: {error.strerror}; make it with: recsys keys create") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise ConfigError(f"keys: {path} is damaged ({where}: {first['msg']}); make the keys again") from error


def create_key(path: Path, name: str, role: Role) -> str:
    """Make a key, add its hash to the file, and return the key itself, which is kept nowhere.

    Args:
        path: the file of keys; made, for its owner's eyes only, if it does not exist.
        name: the client that gets the key.
        role: what the key may do.

    Raises:
        ConfigError: the name is of the wrong form, the client has two live keys or another role, or the file is
            damaged or cannot be written.
    """
    kept = read_keys(path) if path.exists() else ()
    others = [key for key in kept if key.name == name]
    if len(others) >= MAX_LIVE_KEYS:
        oldest = min(others, key=lambda key: key.created_at)
        raise ConfigError(f"keys: {name} has {len(others)} live keys; first: recsys keys revoke {oldest.id}")
    if others and others[0].role != role:
        raise ConfigError(f"keys: {name} has the role {others[0].role}; take another name for the role {role}")
    key = f"recsys_{role}_{secrets.token_urlsafe(32)}"
    try:
        stored = StoredKey(name=name, role=role, sha256=_hash(key), created_at=datetime.now(UTC))
    except ValidationError as error:
        raise ConfigError(f"keys: {name!r} must be 1 to 64 letters, digits, '.', '_' or '-'") from error
    _write(path, [*kept, stored])
    return key


def revoke_key(path: Path, key_id: str) -> StoredKey:
    """Take a key out of the file; a running service refuses it a few seconds later.

    Raises:
        ConfigError: no key has this id, or the file is damaged or cannot be written.
    """
    kept = read_keys(path)
    found = [key for key in kept if key.id == key_id]
    if not found:
        raise ConfigError(f"keys: {path} has no key {key_id}; see: recsys keys list")
    _write(path, [key for key in kept if key.id != key_id])
    return found[0]


class KeyRing:
    """Recognises the keys of a file, and follows the file while the service runs.

    Args:
        path: the file of keys.
        clock: seconds that never go back.

    Raises:
        ConfigError: the file is missing or damaged, or holds no key.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._looked_at = clock()
        self._keys = read_keys(path)
        if not self._keys:
            raise ConfigError(f"keys: {path} holds no key; make one with: recsys keys create")

    def recognise(self, presented: str) -> StoredKey | None:
        """The stored key that `presented` is; None when it is none.

        Takes the same time for every key: all hashes are compared, each in constant time.
        """
        self._follow_file()
        digest = _hash(presented)
        found: StoredKey | None = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found

    def _follow_file(self) -> None:
        now = self._clock()
        if now - self._looked_at < _RELOAD_S:
            return
        self._looked_at = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            # A file that is being replaced must not lock everybody out; the stamp stays old, so it is read again.
            _log.error("keys not reloaded, the ones before hold", error=str(error))
            return
        self._stamp = stamp
        _log.info("keys reloaded", keys=len(self._keys))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with the content of a file; None when there is no file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _write(path: Path, keys: Sequence[StoredKey]) -> None:
    """Replace the file as a whole; `mkstemp` makes it readable for its owner alone."""
    text = json.dumps({"keys": [key.model_dump(mode="json") for key in keys]}, indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        Path(temporary).replace(path)
    except OSError as error:
        raise ConfigError(f"keys: {path} cannot be written: {error.strerror}") from error
