"""A cache on disk that never encodes the same text twice with the same model. Knows texts, not items.

One directory per encoder fingerprint, with append-only safetensors shards of text hashes and vectors. The shards are
the manifest of the job that encodes a catalogue: each is written whole, every few thousand texts (a 256th of a large
job), and names its texts by their hashes; a job that was killed goes on with the texts that no shard names. In memory
are the hashes with their order, 50 bytes a text, the vectors once, and one shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.data import IntArray
from recsys.encoder.encoder import FloatArray, TextEncoder
from recsys.files import atomic_path
from recsys.progress import console

_SHARD_TEXTS, _MOST_SHARD_TEXTS, _SHARDS_A_JOB = 4096, 1 << 15, 256
_HASH_BYTES = 16
_HASHED_TOGETHER = 1 << 16

HashArray = npt.NDArray[Any]
"""Void of 16 bytes, [n]; sorts and compares as bytes do."""


def encode_cached(encoder: TextEncoder, texts: Sequence[str], cache_dir: Path) -> FloatArray:
    """float32 [n, dim] like `encoder.encode`; reads and extends the cache below `cache_dir`."""
    if not texts:
        return encoder.encode(texts)
    directory = cache_dir / "embeddings" / encoder.fingerprint[:32]
    hashes = _hashed(texts)
    distinct, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    is_missing = np.ones(len(distinct), dtype=bool)
    vectors: FloatArray | None = None
    for path in sorted(directory.glob("*.safetensors")):
        places, found = _read_shard(path, distinct)
        if len(places):
            vectors = np.empty((len(texts), found.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[first[places]] = found
            is_missing[places] = False
    missing = np.sort(first[is_missing])
    if len(missing) < len(texts):
        console.print(
            f"encode texts: {len(texts) - len(missing)} of {len(texts)} need no model",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if len(missing):
        vectors = np.empty((len(texts), encoder.dim), dtype=np.float32) if vectors is None else vectors
        shard_texts = max(_SHARD_TEXTS, min(_MOST_SHARD_TEXTS, len(missing) // _SHARDS_A_JOB))
        unsaved: list[IntArray] = []
        for rows, part in encoder.stream([texts[row] for row in missing]):
            unsaved.append(missing[rows])
            vectors[unsaved[-1]] = part
            if sum(map(len, unsaved)) >= shard_texts:
                _write_shard(directory, hashes, vectors, np.concatenate(unsaved))
                unsaved = []
        if unsaved:
            _write_shard(directory, hashes, vectors, np.concatenate(unsaved))
    assert vectors is not None, "each text was found or encoded"
    twins = np.flatnonzero(first[number] != np.arange(len(texts)))
    vectors[twins] = vectors[first[number[twins]]]
    return vectors


def _hashed(texts: Sequence[str]) -> HashArray:
    hashes = np.empty(len(texts), dtype=f"V{_HASH_BYTES}")
    for start in range(0, len(texts), _HASHED_TOGETHER):
        part = texts[start : start + _HASHED_TOGETHER]
        digests = [hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest() for text in part]
        hashes[start : start + len(part)] = np.frombuffer(b"".join(digests), dtype=hashes.dtype)
    return hashes


def _read_shard(path: Path, wanted: HashArray) -> tuple[IntArray, FloatArray]:
    """What a shard holds of `wanted`, which ascend: their places there, int64 [k], and float32 [k, dim].

    A damaged shard is named and deleted, and holds nothing.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            known = file.get_tensor("hashes").view(wanted.dtype)[:, 0]
            places = np.minimum(np.searchsorted(wanted, known), len(wanted) - 1)
            rows = np.flatnonzero(wanted[places] == known)
            # A cache of millions of other texts is not read for a few.
            vectors = file.get_tensor("vectors")[rows] if len(rows) else np.empty((0, 0), dtype=np.float32)
            return places[rows], vectors
    except (OSError, SafetensorError, ValueError) as error:
        console.print(
            f"encode texts: {path} is damaged ({error}) and is made again",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        path.unlink(missing_ok=True)
        return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)


def _write_shard(directory: Path, hashes: HashArray, vectors: FloatArray, rows: IntArray) -> None:
    keys = hashes[rows].view(np.uint8).reshape(-1, _HASH_BYTES)
    name = hashlib.blake2b(keys.tobytes(), digest_size=_HASH_BYTES).hexdigest()
    with atomic_path(directory / f"{name}.safetensors") as temporary:
        save_file({"hashes": keys, "vectors": vectors[rows]}, temporary)
