"""Stage `encode`: item text and, when configured, more become one vector an item; tunes the text model if asked to."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from recsys.assets import ASSETS
from recsys.encoder import EncoderConfig, ItemEmbeddings, encode_catalog
from recsys.errors import DataError
from recsys.files import sha256_directory, sha256_file
from training.config import RunConfig
from training.layout import DATA, ENCODE, TEXT_ENCODER
from training.pipeline import Stage, Workspace
from training.stages import data

_EMBEDDINGS = "embeddings"


def stage(config: RunConfig) -> Stage:
    """What was encoded before a kill is in the encoder's own cache, whose shards are the manifest of the job."""
    alignment = config.encoder.alignment
    return Stage(
        name=ENCODE,
        version=3,
        inputs=(DATA,),
        settings=_settings(config),
        build=partial(_build, config),
        shared=alignment is not None and alignment.trainable_layers != 0,
    )


def _build(config: RunConfig, workspace: Workspace) -> None:
    source = workspace.inputs[DATA]
    split = data.load_split(source)
    embeddings = encode_catalog(
        data.load_catalog(source),
        config.encoder,
        train=split.train,
        held_out=split.held_out,
        tuned_model=workspace.output / TEXT_ENCODER,
        ranks=workspace.ranks,
    )
    # What is stored must not depend on where this machine keeps its files.
    replace(embeddings, encoder=portable(config.encoder)).save(workspace.output / _EMBEDDINGS)


def _settings(config: RunConfig) -> dict[str, Any]:
    settings = config.encoder.model_dump(mode="json")
    directory = Path(config.encoder.model)
    # The encoder takes an asset before a directory of the same name.
    if config.encoder.model not in ASSETS and directory.is_dir():
        # A model of one's own: its content counts, as it may be trained again in place.
        settings["model"] = sha256_directory(directory)
    for modality, described in zip(config.encoder.modalities, settings["modalities"], strict=True):
        if modality.file is not None:
            if not modality.file.is_file():
                raise DataError(f"encoder.modalities: no file {modality.file} for {modality.name!r}; check the path")
            described["file"] = sha256_file(modality.file)
    return settings


def portable(config: EncoderConfig) -> EncoderConfig:
    """The settings with the names of modalities' files instead of their paths."""
    modalities = tuple(
        modality if modality.file is None else modality.model_copy(update={"file": Path(modality.file.name)})
        for modality in config.modalities
    )
    return config.model_copy(update={"modalities": modalities})


def load_embeddings(directory: Path) -> ItemEmbeddings:
    """The vectors of a finished stage."""
    return ItemEmbeddings.load(directory / _EMBEDDINGS)
