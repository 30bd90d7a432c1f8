"""Settings of the item encoder: which text is read, by which model, and what is fused with it."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from recsys.config import StrictConfig

DEFAULT_TEMPLATE = (
    "{title}",
    "Brand: {brand}",
    "Year: {year}",
    "Categories: {categories}",
    "{description}",
)

_SEGMENT = re.compile(r"([^{}]*)\{([^{}!:]+)\}([^{}]*)", re.DOTALL)


class EncoderConfig(StrictConfig):
    """Text of each item through a sentence encoder, optionally fused with who was consumed near whom."""

    model: str = "all-minilm-l6-v2"
    """An asset (`recsys assets list`), a local directory, or any sentence-transformers model of the Hub by name."""
    template: tuple[str, ...] = DEFAULT_TEMPLATE
    """Segments of the text, each with the name of exactly one catalogue column in braces. A segment is left out
    for items without a value, and altogether where the catalogue lacks the column."""
    max_tokens: int = Field(default=96, ge=8)
    """Longer texts are cut here, for speed: attention is quadratic. A model's own limit, if lower, holds as well."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass. Texts of similar length share a batch, so little is spent on padding."""
    collaborative_weight: float = Field(default=0.0, ge=0)
    """Weight of the collaborative part against the text, both of unit norm; 0 = text only. It separates textual
    twins and brings items that are consumed together under one prefix. Fitted on training sequences only."""
    collaborative_dim: int = Field(default=256, ge=1)
    """Width of the collaborative part; small catalogues get less (items - 1)."""
    collaborative_window: int = Field(default=3, ge=1)
    """Items at most this many positions apart count as consumed together."""

    @field_validator("template")
    @classmethod
    def _one_column_each(cls, template: tuple[str, ...]) -> tuple[str, ...]:
        for segment in template:
            if not _SEGMENT.fullmatch(segment):
                raise ValueError(f"segment {segment!r} must name exactly one column in braces, like 'Brand: {{brand}}'")
        if not template:
            raise ValueError("the template needs at least one segment")
        return template


def split_segment(segment: str) -> tuple[str, str, str]:
    """What stands before the column's name, the name, and what stands after it."""
    match = _SEGMENT.fullmatch(segment)
    assert match is not None, "the config has checked its segments"
    return match[1], match[2], match[3]
