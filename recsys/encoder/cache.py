"""A cache on disk that never encodes the same text twice with the same model. Knows texts, not items.

One directory per encoder fingerprint, with append-only safetensors shards of text hashes and vectors. A shard is
written whole every few thousand texts, so a run that is killed keeps what it had finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.encoder.encoder import FloatArray, TextEncoder
from recsys.files import atomic_path
from recsys.progress import console

_SHARD_TEXTS = 4096
_HASH_BYTES = 16


def encode_cached(encoder: TextEncoder, texts: Sequence[str], cache_dir: Path) -> FloatArray:
    """float32 [n, dim] like `encoder.encode`; reads and extends the cache below `cache_dir`."""
    directory = cache_dir / "embeddings" / encoder.fingerprint[:32]
    hashes = [hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest() for text in texts]
    known = _read_shards(directory)
    missing = {key: text for key, text in zip(hashes, texts, strict=True) if key not in known}
    if len(missing) < len(texts):
        console.print(
            f"encode texts: {len(texts) - len(missing)} of {len(texts)} need no model",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if missing:
        keys = list(missing)
        pending: dict[bytes, FloatArray] = {}
        for rows, vectors in encoder.stream(list(missing.values())):
            pending |= dict(zip((keys[row] for row in rows), vectors, strict=True))
            if len(pending) >= _SHARD_TEXTS:
                _write_shard(directory, pending)
                known |= pending
                pending = {}
        if pending:
            _write_shard(directory, pending)
        known |= pending
    return np.stack([known[key] for key in hashes])


def _read_shards(directory: Path) -> dict[bytes, FloatArray]:
    """Vectors by text hash. A damaged shard is named, deleted, and its texts are encoded again."""
    known: dict[bytes, FloatArray] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            shard = load_file(path)
            keys = shard["hashes"].tobytes()
            vectors = shard["vectors"]
        except (OSError, SafetensorError, KeyError) as error:
            console.print(
                f"encode texts: {path} is damaged ({error}) and is made again",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            path.unlink(missing_ok=True)
            continue
        known |= {keys[i * _HASH_BYTES : (i + 1) * _HASH_BYTES]: vector for i, vector in enumerate(vectors)}
    return known


def _write_shard(directory: Path, shard: dict[bytes, FloatArray]) -> None:
    hashes = np.frombuffer(b"".join(shard), dtype=np.uint8).reshape(-1, _HASH_BYTES)
    name = hashlib.blake2b(hashes.tobytes(), digest_size=_HASH_BYTES).hexdigest()
    with atomic_path(directory / f"{name}.safetensors") as temporary:
        save_file({"hashes": hashes.copy(), "vectors": np.stack(list(shard.values()))}, temporary)
