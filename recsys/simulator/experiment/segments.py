"""Whom an effect differs for. Of many segments some differ by chance: p-values are adjusted for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.simulator.experiment.effects import Effect


@dataclass(frozen=True, kw_only=True)
class SegmentEffect:
    """The effect among some users."""

    dimension: str
    segment: str
    effect: Effect
    adjusted_p_value: float
    """Benjamini and Hochberg's over all segments of all dimensions."""


@dataclass(frozen=True, kw_only=True)
class Heterogeneity:
    """Whether the segments of one dimension differ in their effect."""

    dimension: str
    p_value: float
    """Of "all segments have the same relative lift" (Cochran's Q); the same difference where one has no lift."""
    adjusted_p_value: float
    """Benjamini and Hochberg's over all dimensions."""


def adjusted(p_values: npt.ArrayLike) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values, which bound the false-discovery rate."""
    values = np.asarray(p_values, dtype=np.float64)
    return np.atleast_1d(stats.false_discovery_control(values)).tolist() if len(values) else []


def segment_effects(
    segments: Mapping[str, Sequence[str]], effect_of: Callable[[str, str], Effect | None]
) -> tuple[list[SegmentEffect], list[Heterogeneity]]:
    """The effects of all segments, and whether they differ within a dimension.

    Args:
        segments: names of the segments of each dimension.
        effect_of: the effect of a dimension's segment; None where it has too few users.
    """
    found = [
        (dimension, segment, effect)
        for dimension, names in segments.items()
        for segment in names
        if (effect := effect_of(dimension, segment)) is not None
    ]
    effects = [
        SegmentEffect(dimension=dimension, segment=segment, effect=effect, adjusted_p_value=p_value)
        for (dimension, segment, effect), p_value in zip(
            found, adjusted([effect.p_value for _, _, effect in found]), strict=True
        )
    ]
    tests = {
        dimension: p_value
        for dimension in segments
        if (p_value := _same_effect([each.effect for each in effects if each.dimension == dimension])) is not None
    }
    differing = [
        Heterogeneity(dimension=dimension, p_value=p_value, adjusted_p_value=corrected)
        for (dimension, p_value), corrected in zip(tests.items(), adjusted(list(tests.values())), strict=True)
    ]
    return effects, differing


def _same_effect(effects: Sequence[Effect]) -> float | None:
    """P-value of Cochran's Q; None with fewer than two effects that have an error."""
    # Lifts and not differences: who takes twice as much loses twice as much by the same cause.
    found = [(effect.lift.value, effect.lift_error) for effect in effects if effect.lift and effect.lift_error]
    if len(found) < len(effects):
        found = [(effect.difference.value, effect.standard_error) for effect in effects if effect.standard_error > 0]
    if len(found) < 2:
        return None
    values, errors = np.array(found).T
    weights = errors**-2.0
    centre = (weights * values).sum() / weights.sum()
    return float(stats.chi2.sf((weights * (values - centre) ** 2).sum(), len(found) - 1))
