"""What an index is made of: Faiss indexes of consecutive rows, one after the other, in memory and in files.

    index.json              the kind, the vectors that it is of, and the checksum of each shard; written last
    index-00000.faiss …     the shards

and while it is made, so that it goes on after a kill and that several processes can make it

    index-build.json        what is made, of which vectors
    index-template.faiss    what all shards share
    index-00000.json …      beside a finished shard: of which build it is, and its checksum

Knows no queries and no constraints.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt
import torch

from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_path, sha256_file, sha256_json, write_json
from recsys.retrieval.gpu import LONGEST_LIST, build_cagra

FloatArray = npt.NDArray[np.float32]
IndexKind = Literal["flat", "hnsw", "ivf_pq", "ivf_rabitq", "cagra"]

_faiss: Any = faiss  # whose types lack much

_FORMAT = 2
_FACTS, _BUILD, _TEMPLATE = "index.json", "index-build.json", "index-template.faiss"
_SINGLE = "index.faiss"
"""The one shard of format 1."""
_SHARD_ROWS = 5_000_000
"""Large: each further shard costs a query of a graph as much again as the first (benchmarks/results/index.json)."""
_LINKS, _BUILD_BREADTH, BREADTH = 32, 80, 128
_PROBES, REFINED, _MOST_SUBSPACES, _POINTS_A_CELL = 16, 8, 64, 39
_CODES_A_SUBSPACE = 16
"""Of four bits, which are fitted to as many vectors at least."""
_SAMPLE_A_CELL = 64
"""Vectors that cells and codes are fitted to, for each cell: all of them would take hours at ten million items."""
_PIECE_ROWS = 2**16
"""Vectors that are checked, or put into an index, at a time."""


def choose_num_shards(kind: IndexKind, num_vectors: int) -> int:
    """How many shards an index has: one up to five million vectors, and always one where nothing is built."""
    return 1 if kind == "flat" else -(-num_vectors // _SHARD_ROWS)


def parts(vectors: FloatArray, num_shards: int) -> list[FloatArray]:
    """The rows of each shard, float32 [n, D]; their numbers differ by one at most."""
    bounds = [len(vectors) * number // num_shards for number in range(num_shards + 1)]
    return [vectors[begin:end] for begin, end in pairwise(bounds)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """What all shards of an index share: an index without vectors, whose cells and codes are fitted to a sample of all.

    A shard is a copy with the vectors of its rows, whoever makes it. So a query visits the same cells, and compares the
    same codes, whatever the number of shards.
    """

    kind: IndexKind
    longest: float
    """The length of the longest vector, which codes of one bit a component are relative to."""
    stored: npt.NDArray[np.uint8]
    """As Faiss writes it."""

    @classmethod
    def fit(cls, vectors: FloatArray, kind: IndexKind) -> Template:
        """Minutes for millions of vectors where there are cells; at once otherwise."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        longest, dim = 1.0, vectors.shape[1]
        if kind == "ivf_rabitq":
            longest = max(float(np.linalg.norm(part, axis=1).max()) for part in _pieces(vectors)) or 1.0
            dim += 1
        description, parameters = _recipe(kind, *vectors.shape)
        if kind == "cagra":
            index = _faiss.IndexHNSWCagra(dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
        else:
            index = _faiss.index_factory(dim, description, faiss.METRIC_INNER_PRODUCT)
        _faiss.ParameterSpace().set_index_parameters(index, parameters)
        if not index.is_trained:
            sample = vectors[:: max(1, len(vectors) // (_SAMPLE_A_CELL * _num_cells(len(vectors))))]
            index.train(_of_one_length(sample, longest) if kind == "ivf_rabitq" else sample)
        return cls(kind=kind, longest=longest, stored=faiss.serialize_index(index))

    def shard(self, vectors: FloatArray, number: int) -> Any:
        """The index of a shard's rows; `number` from 0 says on which of several GPUs it is built."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        index: Any = faiss.deserialize_index(self.stored)
        if self.kind == "cagra":
            build_cagra(vectors, number, index)
        elif self.kind == "ivf_rabitq":
            for part in _pieces(vectors):
                index.add(_of_one_length(part, self.longest))
        else:
            index.add(vectors)
        return index


def make_shards(vectors: FloatArray, kind: IndexKind, num_shards: int) -> list[Any]:
    """All shards of an index, in memory. Raises DataError and ConfigError where this cannot be."""
    check_shards(kind, len(vectors), num_shards)
    template = Template.fit(vectors, kind)
    return [template.shard(part, number) for number, part in enumerate(parts(vectors, num_shards))]


def joined(shards: Sequence[Any], kind: IndexKind) -> Any:
    """One index over shards; a list of several merges theirs."""
    first = shards[0]
    if len(shards) == 1:
        return first
    if kind == "ivf_rabitq":
        whole = _faiss.IndexShardsIVF(first.quantizer, first.nlist, False, True)
    else:
        whole = _faiss.IndexShards(first.d, False, True)
    for shard in shards:
        whole.add_shard(shard)
    return whole


class IndexBuild:
    """An index in the making in a directory that processes and machines may share. Any of them makes any shard.

    One begins and finishes it, the others join in between:

        build = IndexBuild.begin(directory, vectors, "ivf_rabitq", num_shards=8)
        build.make(0)      # elsewhere, at the same time: IndexBuild.join(directory, vectors).make(1) …
        build.finish()

    What a killed process had finished is found by the next one that begins with the same vectors and settings.
    """

    def __init__(self, directory: Path, vectors: FloatArray, facts: dict[str, Any], template: Template) -> None:
        self.num_shards: int = facts["num_shards"]
        self._directory, self._vectors, self._template, self._facts = directory, vectors, template, facts
        self._id = sha256_json(facts)

    @classmethod
    def begin(cls, directory: Path, vectors: FloatArray, kind: IndexKind, num_shards: int) -> IndexBuild:
        """Fit what all shards share, or find it; an earlier index in the directory is then no index any more.

        Args:
            directory: an existing one.
            vectors: float32 [N, D], finite.
            kind: any but flat, which has no files.
            num_shards: 1 to N.

        Raises:
            DataError, ConfigError: there can be no such index, or it cannot be built here.
        """
        check_shards(kind, len(vectors), num_shards)
        facts = {**_described(vectors, kind), "num_shards": num_shards}
        (directory / _FACTS).unlink(missing_ok=True)
        try:
            found = cls._open(directory, vectors)
        except ArtifactError:
            found = None
        if found is not None and facts.items() <= found._facts.items():
            return found
        template = Template.fit(vectors, kind)
        with atomic_path(directory / _TEMPLATE) as temporary:
            template.stored.tofile(temporary)
        facts |= {"longest": template.longest, "template_sha256": sha256_file(directory / _TEMPLATE)}
        write_json(directory / _BUILD, facts)
        return cls(directory, vectors, facts, template)

    @classmethod
    def join(cls, directory: Path, vectors: FloatArray) -> IndexBuild:
        """What another process has begun.

        Raises:
            ArtifactError: none has, it is damaged, or of other vectors.
        """
        found = cls._open(directory, vectors)
        if not _described(vectors, found._template.kind).items() <= found._facts.items():
            raise ArtifactError(
                f"index: what is made in {directory} is of other vectors or settings; join with the same"
            )
        return found

    @classmethod
    def _open(cls, directory: Path, vectors: FloatArray) -> IndexBuild:
        try:
            facts = json.loads((directory / _BUILD).read_text())
            stored = np.fromfile(directory / _TEMPLATE, dtype=np.uint8)
            if hashlib.sha256(stored.data).hexdigest() != facts["template_sha256"]:
                raise ArtifactError(f"index: {directory / _TEMPLATE} was changed; begin again")
            template = Template(kind=facts["kind"], longest=facts["longest"], stored=stored)
            return cls(directory, vectors, facts, template)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"index: nothing to join in {directory}: {error}; begin it first") from error

    def make(self, number: int) -> bool:
        """Write shard `number`, whole or not at all; False if it is there, or was when this one was done."""
        if self._is_made(number):
            return False
        shard = self._template.shard(parts(self._vectors, self.num_shards)[number], number)
        # Another process may have made it meanwhile, and a graph that threads make is never the same to the byte.
        if self._is_made(number):
            return False
        digest = _write_shard(shard, self._directory, number)
        write_json(_note(self._directory, number), {"build": self._id, "sha256": digest})
        return True

    def finish(self) -> None:
        """Say that this is an index now, once all shards are made. Raises ArtifactError if one lacks."""
        shards = [self._sha256(number) for number in range(self.num_shards)]
        if lacking := [number for number, digest in enumerate(shards) if digest is None]:
            raise ArtifactError(f"index: {self._directory} lacks the shards {lacking}; make them before it is finished")
        kept = ("format", "kind", "recipe", "vectors_sha256")
        _write_facts(self._directory, {**{name: self._facts[name] for name in kept}, "shards": shards})

    def _is_made(self, number: int) -> bool:
        return (self._directory / _FACTS).exists() or self._sha256(number, whole=True) is not None

    def _sha256(self, number: int, *, whole: bool = False) -> str | None:
        """Of a shard that this build has finished, and whose file is as it was written if that is asked for."""
        path = _shard(self._directory, number)
        try:
            note = json.loads(_note(self._directory, number).read_text())
            if note["build"] != self._id or (whole and sha256_file(path) != note["sha256"]):
                return None
            return str(note["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def save_shards(shards: Sequence[Any], kind: IndexKind, vectors: FloatArray, directory: Path) -> None:
    """Write an index of `vectors` into an existing directory; an earlier one there is replaced. No shards: no files but
    one that says so."""
    digests = [_write_shard(shard, directory, number) for number, shard in enumerate(shards)]
    _write_facts(directory, {**_described(vectors, kind), "shards": digests})


def is_saved(directory: Path, kind: IndexKind, vectors: FloatArray, num_shards: int) -> bool:
    """Whether a directory holds the whole index of these vectors and settings, in so many shards."""
    try:
        facts = json.loads((directory / _FACTS).read_text())
        digests = facts["shards"]
        return (
            _described(vectors, kind).items() <= facts.items()
            and len(digests) == num_shards
            and all(sha256_file(_shard(directory, number)) == digest for number, digest in enumerate(digests))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_shards(directory: Path, vectors: FloatArray) -> tuple[IndexKind, list[Any]]:
    """Kind and shards of a saved index over `vectors`, as maps of their files.

    Raises:
        ArtifactError: a file is missing or was changed, or the vectors are others.
    """
    try:
        facts = json.loads((directory / _FACTS).read_text())
        kind: IndexKind = facts["kind"]
        if facts["format"] == 1:
            digests = {directory / _SINGLE: digest} if (digest := facts["faiss_sha256"]) else {}
        elif facts["format"] == _FORMAT:
            digests = {_shard(directory, number): digest for number, digest in enumerate(facts["shards"])}
        else:
            raise ArtifactError(
                f"index: {directory} has format {facts['format']}, this version reads those up to {_FORMAT}"
            )
        # Before Faiss reads them: a crafted file must not reach its parser.
        changed = [path for path, digest in digests.items() if sha256_file(path) != digest]
        vectors_sha256 = facts["vectors_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"index: cannot read {directory}: {error}; build it again") from error
    if changed:
        raise ArtifactError(f"index: {changed[0]} was changed; build it again")
    if vectors_sha256 != _digest(vectors):
        raise ArtifactError(f"index: {directory} was built over other vectors; load it with those of the same run")
    return kind, [faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC) for path in digests]


def _recipe(kind: IndexKind, num_vectors: int, dim: int) -> tuple[str, str]:
    """What Faiss is told to make, and with which parameters."""
    cells = _num_cells(num_vectors)
    nearest = f"nprobe={min(_PROBES, cells)}"
    if kind == "hnsw":
        return f"HNSW{_LINKS}", f"efConstruction={_BUILD_BREADTH},efSearch={BREADTH}"
    if kind == "cagra":
        return f"CAGRA{2 * _LINKS}", f"efSearch={BREADTH}"
    if kind == "ivf_pq":
        subspaces = max(size for size in range(1, min(dim, _MOST_SUBSPACES) + 1) if dim % size == 0)
        return f"IVF{cells},PQ{subspaces}x4fs,RFlat", f"{nearest},k_factor_rf={REFINED}"
    return ("Flat", "") if kind == "flat" else (f"IVF{cells},RaBitQ", nearest)


def check_shards(kind: IndexKind, num_vectors: int, num_shards: int) -> None:
    """Raise DataError where there can be no such index, or the vectors cannot be divided so."""
    if kind == "flat" and num_shards != 1:
        raise DataError(f"an index of kind flat is not divided, got {num_shards} shards; choose 1, or another kind")
    fewest = LONGEST_LIST if kind == "cagra" else 1
    if num_shards < 1 or num_vectors < fewest * num_shards:
        raise DataError(
            f"an index of kind {kind} has at least one shard, and in each at least {fewest} vectors, "
            f"got {num_vectors} for {num_shards}; choose fewer shards, or the kind flat"
        )
    if kind == "ivf_pq" and num_vectors < _CODES_A_SUBSPACE:
        raise DataError(
            f"an index of kind ivf_pq is of at least {_CODES_A_SUBSPACE} vectors, got {num_vectors}; "
            "choose the kind flat"
        )


def are_finite(vectors: FloatArray) -> bool:
    """Without a table of booleans as long as the vectors."""
    return all(np.isfinite(part).all() for part in _pieces(vectors))


def _described(vectors: FloatArray, kind: IndexKind) -> dict[str, Any]:
    """What makes two indexes the same one, but for their shards."""
    return {
        "format": _FORMAT,
        "kind": kind,
        "recipe": " ".join(_recipe(kind, *vectors.shape)),
        "vectors_sha256": _digest(vectors),
    }


def _write_shard(shard: Any, directory: Path, number: int) -> str:
    """The checksum of what was written."""
    with atomic_path(_shard(directory, number)) as temporary:
        faiss.write_index(shard, str(temporary))
        return sha256_file(temporary)


def _write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Last of all; then files that are not of this index go."""
    write_json(directory / _FACTS, facts)
    own = {_shard(directory, number) for number in range(len(facts["shards"]))}
    for path in {*directory.glob("index-*"), directory / _SINGLE} - own:
        path.unlink(missing_ok=True)


def _shard(directory: Path, number: int) -> Path:
    return directory / f"index-{number:05d}.faiss"


def _note(directory: Path, number: int) -> Path:
    return _shard(directory, number).with_suffix(".json")


def _num_cells(num_items: int) -> int:
    return max(1, min(int(2 ** round(math.log2(4 * math.sqrt(num_items)))), num_items // _POINTS_A_CELL))


def _pieces(vectors: FloatArray) -> Iterator[FloatArray]:
    return (vectors[begin : begin + _PIECE_ROWS] for begin in range(0, len(vectors), _PIECE_ROWS))


def _of_one_length(vectors: FloatArray, longest: float) -> FloatArray:
    """float32 [N, D + 1] of length 1, whose inner products with a query and a zero are those of `vectors` in the same
    order: what is near is then what has a large product, as cells and codes take it to be (Bachrach et al., RecSys
    2014, section 3)."""
    scaled = vectors / np.float32(longest)
    rest = np.sqrt(np.maximum(0, 1 - np.einsum("nd,nd->n", scaled, scaled)))
    return np.concatenate([scaled, rest[:, None]], axis=1)


def _digest(vectors: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors, dtype=np.float32).data).hexdigest()
