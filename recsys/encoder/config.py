"""Settings of the item encoder: which text is read, by which model, how that is tuned, and what is fused with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recsys.config import StrictConfig
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.graph.config import CM3Config, LightGCNConfig, SIGERConfig

DEFAULT_TEMPLATE = (
    "{title}",
    "Brand: {brand}",
    "Year: {year}",
    "Categories: {categories}",
    "{description}",
)

_SEGMENT = re.compile(r"([^{}]*)\{([^{}!:]+)\}([^{}]*)", re.DOTALL)


class SpectralConfig(StrictConfig):
    """Truncated SVD of who was consumed near whom: seconds, and nothing for items without interactions."""

    method: Literal["spectral"] = "spectral"
    """Selects it."""
    dim: int = Field(default=256, ge=1)
    """Width; small catalogues get less (items - 1)."""
    window: int = Field(default=3, ge=1)
    """Items at most this many positions apart count as consumed together."""


CollaborativeConfig = Annotated[
    SpectralConfig | LightGCNConfig | CM3Config | SIGERConfig, Field(discriminator="method")
]
"""Where collaborative vectors come from; the key `method` says which."""


class ModalityConfig(StrictConfig):
    """Vectors of items that come ready made. An item may lack them, all items may not."""

    name: str = Field(min_length=1)
    """`image`, `audio`, ...; `text` is taken."""
    column: str | None = None
    """A column of the catalogue that holds lists of numbers."""
    file: Path | None = None
    """A .parquet (item_id and one column of lists), .safetensors (a tensor an item) or .npy (rows in the catalogue's
    order) instead."""
    weight: float = Field(default=1.0, gt=0)
    """Weight against the text in the items' vectors, both of unit norm. Graph encoders weigh modalities themselves."""

    @model_validator(mode="after")
    def _one_source(self) -> ModalityConfig:
        if (self.column is None) == (self.file is None):
            raise ValueError(f"modality {self.name!r} needs either column or file; give one of them")
        if self.name == "text":
            raise ValueError("a modality cannot be called 'text', which is the encoder's own; choose another name")
        return self


class EncoderConfig(StrictConfig):
    """Text of each item through a sentence encoder, optionally fused with who was consumed near whom."""

    model: str = "all-minilm-l6-v2"
    """An asset (`recsys assets list`), a local directory, or any sentence-transformers model of the Hub by name."""
    pooling: Literal["model", "mean", "last"] = "model"
    """`model`: the model is a sentence encoder and pools by itself. `mean` and `last`: it is any causal language model,
    and a text's vector is the mean of its last hidden states, or the one of its last token."""
    template: tuple[str, ...] = DEFAULT_TEMPLATE
    """Segments of the text, each with the name of exactly one catalogue column in braces. A segment is left out
    for items without a value, and altogether where the catalogue lacks the column."""
    max_tokens: int = Field(default=96, ge=8)
    """Longer texts are cut here, for speed: attention is quadratic. A model's own limit, if lower, holds as well."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass. Texts of similar length share a batch, so little is spent on padding."""
    alignment: AlignmentConfig | None = None
    """Tune the text model on training sequences before it encodes. None = take it as it is."""
    modalities: tuple[ModalityConfig, ...] = ()
    """Vectors from elsewhere, images for instance, beside the text."""
    collaborative_weight: float = Field(default=0.0, ge=0)
    """Weight of the collaborative part against the text, both of unit norm; 0 = no such part. It separates textual
    twins and brings items that are consumed together under one prefix. Fitted on training sequences only."""
    collaborative: CollaborativeConfig = SpectralConfig()
    """Where the collaborative part comes from."""

    @field_validator("template")
    @classmethod
    def _one_column_each(cls, template: tuple[str, ...]) -> tuple[str, ...]:
        for segment in template:
            if not _SEGMENT.fullmatch(segment):
                raise ValueError(f"segment {segment!r} must name exactly one column in braces, like 'Brand: {{brand}}'")
        if not template:
            raise ValueError("the template needs at least one segment")
        return template

    @model_validator(mode="after")
    def _parts_fit_together(self) -> EncoderConfig:
        if self.alignment is not None and self.pooling != "model":
            raise ValueError(
                f"alignment tunes sentence-transformers models, but pooling is {self.pooling}; set pooling: model, or "
                "remove alignment"
            )
        names = [modality.name for modality in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError(f"modalities must have different names, found {', '.join(names)}")
        return self


def split_segment(segment: str) -> tuple[str, str, str]:
    """What stands before the column's name, the name, and what stands after it."""
    match = _SEGMENT.fullmatch(segment)
    assert match is not None, "the config has checked its segments"
    return match[1], match[2], match[3]
