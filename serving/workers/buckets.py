"""The token buckets of all clients in memory that the processes of a service share. Knows no rates and no HTTP.

A table of open addressing: a client's bucket stands at the first free place from the one that its hash gives. One file
lock guards all of it for the microseconds of a look; the operating system takes it from a process that dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from serving.guard.limiter import Bucket

_ROW = struct.Struct("16sdd")
"""Hash of the client, tokens, time."""
_FREE = bytes(16)


class SharedBuckets:
    """Buckets that every process has which is forked after this. In each, for one thread.

    Args:
        burst: what a full bucket holds.
        capacity: clients at a time; far more than the keys of a file.
    """

    def __init__(self, burst: int, *, capacity: int = 16_384) -> None:
        self._burst = burst
        self._capacity = capacity
        self._table = mmap.mmap(-1, capacity * _ROW.size)
        self._lock = tempfile.TemporaryFile(prefix="recsys-rates-")  # noqa: SIM115 - open as long as the service runs

    @contextmanager
    def hold(self, client: str) -> Iterator[Bucket]:
        """See `serving.guard.limiter.Buckets`.

        Raises:
            RuntimeError: more clients have asked than there are places.
        """
        # A record lock belongs to a process, not to the open file, which they have all inherited.
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            digest = hashlib.sha256(client.encode()).digest()[:16]
            place, bucket = self._find(digest)
            yield bucket
            _ROW.pack_into(self._table, place, digest, bucket.tokens, bucket.filled_at)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _find(self, digest: bytes) -> tuple[int, Bucket]:
        first = int.from_bytes(digest[:8], "little")
        for step in range(self._capacity):
            place = (first + step) % self._capacity * _ROW.size
            found, tokens, filled_at = _ROW.unpack_from(self._table, place)
            if found == digest:
                return place, Bucket(tokens=tokens, filled_at=filled_at)
            if found == _FREE:
                return place, Bucket(tokens=self._burst, filled_at=0.0)
        raise RuntimeError(f"rates: more than {self._capacity} clients; restart the service")
