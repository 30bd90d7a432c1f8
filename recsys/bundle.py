"""The directory that serving loads: one model with everything it needs, verified file by file.

    manifest.json       versions, config, metrics, and the SHA-256 of every other file
    catalog.parquet     items; row number = dense index
    histories.parquet   user_id (String), item_ids (List[String], oldest first), in the order of the user ids
    popularity.safetensors   int64 [num_items] interaction counts
    semantic_ids/  tokenizer/  embeddings/  generator/     each in the format of its room
    text_encoder/       the text model, where it was tuned
    fusion/             further sources and a ranker, where there are any (recsys.retrieval)
    content/            unit embeddings and their index, where there is no fusion and many items (recsys.retrieval)
    intents/            tags and explanations, where they were made (recsys.profile.intents)
    report.json         the evaluation

Loading executes no code from a file. Knows no HTTP and no training.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import recsys
from recsys.config import StrictConfig
from recsys.data import Catalog, Interactions
from recsys.data.histories import Histories, write_histories
from recsys.data.sequences import IntArray
from recsys.encoder import ItemEmbeddings, TextEncoder
from recsys.errors import ArtifactError
from recsys.files import atomic_directory, sha256_file, sha256_json, write_json
from recsys.generator import GenerativeRecommender
from recsys.generator.gpu import on_gpu
from recsys.generator.lm.backbone import Backbone
from recsys.profile.intents.build import build_table
from recsys.profile.intents.config import IntentConfig
from recsys.profile.intents.table import IntentTable
from recsys.profile.writers import TextWriter
from recsys.retrieval import FusedRecommender, load_fused
from recsys.retrieval.content import content_source, save_content
from recsys.retrieval.sources import TowerSource
from recsys.tokenizer import SemanticIds, SemanticIdTokenizer, load_tokenizer

FORMAT = 2
_MANIFEST = "manifest.json"
_HISTORIES = "histories.parquet"
_TEXT_ENCODER = "text_encoder"
_FUSION = "fusion"
_CONTENT = "content"
_INTENTS = "intents"
_LIBRARIES = ("torch", "transformers", "numpy", "polars", "safetensors")


class Manifest(StrictConfig):
    """What a bundle is and what its files must be."""

    format: int = FORMAT
    """Version of the directory's layout."""
    name: str = Field(min_length=1)
    """Name of the run; user and item ids of different names have nothing to do with each other."""
    model_version: str
    """First 12 hex digits of the hash over the content of all files: equal content, equal version."""
    created_at: datetime
    """When it was written, UTC."""
    libraries: dict[str, str]
    """Versions it was made with, by library."""
    config: dict[str, Any]
    """The resolved config of the run."""
    metrics: dict[str, Any]
    """Test metrics of what is served, `{"value", "low", "high"}` by name."""
    files: dict[str, str]
    """SHA-256 by path relative to the bundle, with `/`."""


def write_bundle(
    path: Path,
    *,
    name: str,
    config: Mapping[str, Any],
    catalog: Catalog,
    interactions: Interactions,
    item_counts: IntArray,
    embeddings: ItemEmbeddings,
    semantic_ids: SemanticIds,
    tokenizer: SemanticIdTokenizer,
    recommender: GenerativeRecommender,
    report: Mapping[str, Any],
    text_encoder: Path | None = None,
    fusion: Path | None = None,
) -> Manifest:
    """Write the bundle at `path`, whole or not at all; an earlier one there is replaced.

    Args:
        path: the directory to make.
        name: of the run.
        config: resolved, JSON-able.
        catalog: all items.
        interactions: the log whose users are served from the start, with all their items.
        item_counts: int64 [num_items], interactions an item, for the popularity fallback.
        embeddings: of all items.
        semantic_ids: of all items.
        tokenizer: that made them; encodes new items.
        recommender: trained on them.
        report: the content of report.json; `models.fused`, with a fusion, or `models.generator` becomes the manifest's
            metrics.
        text_encoder: directory of the text model, if it was tuned.
        fusion: directory of a saved fusion over `recommender` and `embeddings`, if there is one.

    Raises:
        ArtifactError: the parts disagree on the number of items.
    """
    _check_sizes(catalog, item_counts, embeddings, semantic_ids)
    with atomic_directory(path) as directory:
        catalog.save(directory / "catalog.parquet")
        write_histories(directory / _HISTORIES, catalog.frame["item_id"], interactions)
        save_file({"item_counts": np.ascontiguousarray(item_counts)}, directory / "popularity.safetensors")
        semantic_ids.save(directory / "semantic_ids")
        tokenizer.save(directory / "tokenizer")
        embeddings.save(directory / "embeddings")
        if text_encoder is not None:
            shutil.copytree(text_encoder, directory / _TEXT_ENCODER)
        if fusion is not None:
            shutil.copytree(fusion, directory / _FUSION)
        else:
            save_content(embeddings.vectors, directory / _CONTENT)
        (directory / "generator").mkdir()
        recommender.save(directory / "generator")
        write_json(directory / "report.json", report)
        metrics = report.get("models", {}).get("generator" if fusion is None else "fused", {})
        return _seal(directory, name=name, config=config, metrics=metrics)


def make_intents(
    path: Path, config: IntentConfig, writer: TextWriter | None = None, writer_name: str = "language model"
) -> IntentTable:
    """Make tags and explanations for the bundle at `path` and put them into it, in place of those that it has, whole or
    not at all. Its model is the same as before; its version is another.

    Args:
        path: the bundle.
        config: sizes.
        writer: see `build_table`.
        writer_name: what the table calls it.

    Raises:
        ArtifactError: there is no bundle, or it is damaged.
        ChatError: the chat model does not answer.
    """
    manifest = read_manifest(path)
    _verify_files(path, manifest.files)
    catalog = Catalog.load(path / "catalog.parquet")
    named = pl.read_parquet(path / _HISTORIES)["item_ids"].to_list()
    histories = [catalog.index_of(item_ids).tolist() for item_ids in named]
    table = build_table(catalog, histories, config, writer, writer_name)
    with atomic_directory(path) as directory:
        for file in manifest.files:
            if not file.startswith(f"{_INTENTS}/"):
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / file, directory / file)
        (directory / _INTENTS).mkdir()
        table.save(directory / _INTENTS)
        _seal(directory, name=manifest.name, config=manifest.config, metrics=manifest.metrics)
    return table


def _seal(directory: Path, *, name: str, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Manifest:
    """Write the manifest of the files that are in `directory`."""
    files = {file: sha256_file(directory / file) for file in _file_names(directory)}
    for file in files:
        (directory / file).chmod(0o644)  # safetensors writes for the owner only; another user may serve
    manifest = Manifest(
        name=name,
        model_version=sha256_json({file: _content_hash(directory / file) for file in files})[:12],
        created_at=datetime.now(UTC).replace(microsecond=0),
        libraries={
            "recsys": recsys.__version__,
            **{library: importlib.metadata.version(library) for library in _LIBRARIES},
        },
        config=dict(config),
        metrics=dict(metrics),
        files=files,
    )
    write_json(directory / _MANIFEST, manifest.model_dump(mode="json"))
    return manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A verified bundle in memory; the tokenizer and the histories are read when first asked for."""

    path: Path
    manifest: Manifest
    catalog: Catalog
    embeddings: ItemEmbeddings
    semantic_ids: SemanticIds
    recommender: GenerativeRecommender
    fused: FusedRecommender | None
    """Over `recommender` and further sources; None where the run had no fusion."""
    item_counts: IntArray
    """int64 [num_items]."""
    report: dict[str, Any]
    intents: IntentTable | None = None
    """Tags and explanations; None where they were not made."""

    @cached_property
    def tokenizer(self) -> SemanticIdTokenizer:
        """Gives new items their semantic IDs."""
        return load_tokenizer(self.path / "tokenizer")

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Gives new items the text vectors that `embeddings.match` takes."""
        config, tuned = self.embeddings.encoder, self.path / _TEXT_ENCODER
        return TextEncoder(config.model_copy(update={"model": str(tuned)}) if tuned.is_dir() else config)

    @cached_property
    def content(self) -> TowerSource:
        """Items whose embeddings are like those of a history: the fusion's, where there is one.

        Raises:
            ArtifactError: what is saved of it is damaged.
        """
        found = None if self.fused is None else self.fused.pool.sources.get("content")
        if isinstance(found, TowerSource):
            return found
        saved = self.path / _CONTENT
        return content_source(self.embeddings.vectors, saved if saved.is_dir() else None)

    @property
    def no_reasons(self) -> str | None:
        """Why the model gives no reasons in words (`recsys.generator.lm.reason`), and the fix; None if it does."""
        if not isinstance(self.recommender.model.body, Backbone):
            return f"the model of {self.manifest.name} knows no words; reasons need a run with generator.model.lm"
        shares = self.manifest.config.get("teach", {}).get("tasks", {}).get("shares", {})
        if not shares.get("reasoning", {}).get("passes", 0):
            return (
                f"the model of {self.manifest.name} was not taught to reason; train it with "
                "teach.tasks.shares.reasoning.passes above 0"
            )
        return None

    def on_gpu(self) -> Bundle:
        """The same bundle whose generator, in its fusion too, searches on a GPU; this one is not to be used any more.

        Raises:
            ConfigError: there is no GPU.
        """
        generator = on_gpu(self.recommender)
        fused = None if self.fused is None else self.fused.with_generator(generator)
        return replace(self, recommender=generator, fused=fused)

    @property
    def histories_version(self) -> str:
        """Names the content of `histories`."""
        return self.manifest.files[_HISTORIES]

    @cached_property
    def users(self) -> Histories:
        """The histories of all users."""
        return Histories(self.path / _HISTORIES)

    def histories(self) -> Iterator[tuple[str, list[str]]]:
        """User ids with their item ids, oldest first; read as they are asked for."""
        return self.users.items()

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read and verify what `write_bundle` wrote.

        Raises:
            ArtifactError: a file is missing, damaged or foreign, or the layout is of another version.
        """
        manifest = read_manifest(path)
        _verify_files(path, manifest.files)
        try:
            report = json.loads((path / "report.json").read_text())
            item_counts = load_file(path / "popularity.safetensors")["item_counts"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ArtifactError(f"bundle: cannot read {path}: {error}; build it again") from error
        catalog = Catalog.load(path / "catalog.parquet")
        embeddings = ItemEmbeddings.load(path / "embeddings")
        semantic_ids = SemanticIds.load(path / "semantic_ids")
        _check_sizes(catalog, item_counts, embeddings, semantic_ids)
        recommender = _load_recommender(path / "generator", semantic_ids, embeddings)
        has_fusion = (path / _FUSION).is_dir()
        return cls(
            path=path,
            manifest=manifest,
            catalog=catalog,
            embeddings=embeddings,
            semantic_ids=semantic_ids,
            recommender=recommender,
            fused=load_fused(path / _FUSION, recommender, embeddings.vectors) if has_fusion else None,
            item_counts=item_counts,
            report=report,
            intents=IntentTable.load(path / _INTENTS, catalog.num_items) if (path / _INTENTS).is_dir() else None,
        )


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`; does not look at the other files.

    Raises:
        ArtifactError: there is none, or it is damaged or of another version.
    """
    file = path / _MANIFEST
    if not file.is_file():
        raise ArtifactError(f"bundle: {file} is missing; name a bundle, or a run whose bundle stage is done")
    try:
        facts = json.loads(file.read_text())
        version = facts.get("format")
        if version != FORMAT:
            raise ArtifactError(f"bundle: {path} has format {version}, this version reads {FORMAT}; build it again")
        return Manifest.model_validate(facts)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"bundle: cannot read {file}: {reason}; build the bundle again") from error


def _load_recommender(path: Path, semantic_ids: SemanticIds, embeddings: ItemEmbeddings) -> GenerativeRecommender:
    try:
        return GenerativeRecommender.load(path, semantic_ids.codes, semantic_ids.codebook_sizes, embeddings.vectors)
    except (RuntimeError, ValueError, KeyError) as error:
        # The hashes are right, so this is not damage: weights or settings of another version of the program.
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"bundle: {path} does not fit this version: {reason}; build the bundle again") from error


def _verify_files(path: Path, expected: Mapping[str, str]) -> None:
    present = set(_file_names(path)) - {_MANIFEST}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - expected.keys())]
    problems = problems or [
        f"{name} was changed" for name, digest in expected.items() if sha256_file(path / name) != digest
    ]
    if problems:
        raise ArtifactError(
            f"bundle: {path}: {', '.join(problems[:3])} ({len(problems)} of {len(expected)} files); "
            "copy or build it again"
        )


def _file_names(directory: Path) -> list[str]:
    """Files below `directory`, hidden ones (a file manager's) left out."""
    names = (file.relative_to(directory) for file in directory.rglob("*") if not file.is_dir())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _content_hash(path: Path) -> str:
    """Hex SHA-256 that equal content always has: safetensors writes its metadata in an order that varies."""
    if path.suffix != ".safetensors":
        return sha256_file(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sha256_json([header, hashlib.file_digest(file, "sha256").hexdigest()])


def _check_sizes(
    catalog: Catalog, item_counts: IntArray, embeddings: ItemEmbeddings, semantic_ids: SemanticIds
) -> None:
    sizes = {
        "catalog": catalog.num_items,
        "item_counts": len(item_counts),
        "embeddings": len(embeddings.vectors),
        "semantic_ids": len(semantic_ids.codes),
    }
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{part} has {size}" for part, size in sizes.items())
        raise ArtifactError(f"bundle: the parts differ in their number of items: {listed}; build them from one run")
