"""Filters of a run's pairs, one after another, each on the pairs that it can judge, with what it changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from recsys.alignment.noise.config import FilterConfig, FilterInputs
from recsys.alignment.pairs import OBJECTIVES, PreferencePairs
from recsys.errors import DataError

_FEWEST = 2
"""Pairs about one objective that can be compared with each other."""


def clean(
    pairs: PreferencePairs, filters: Sequence[FilterConfig], inputs: FilterInputs
) -> tuple[PreferencePairs, list[dict[str, int | str]]]:
    """The pairs that are left, in their order, and an entry a filter.

    Pairs about one objective are judged by themselves: what is wrong about accuracy may be right about novelty. Pairs
    that a filter cannot judge pass.

    Args:
        pairs: of items.
        filters: in the order in which they work.
        inputs: what they need.

    Returns:
        The pairs, and for each filter its `kind`, how many pairs it `judged`, `dropped` and `relabelled` (gave another
        `label_noise_prob`), and how many `pairs` there were after it.

    Raises:
        DataError: a filter has no pairs to judge, too few, or leaves none.
    """
    report: list[dict[str, int | str]] = []
    for number, config in enumerate(filters):
        where = f"pairs.filters[{number}]: {config.kind}"
        built = config.build(inputs)
        place = pl.Series("place", np.arange(len(pairs)))
        readable = pairs.frame["source"].is_in(list(config.reads))
        parts = [pairs.frame.with_columns(place).filter(~readable)]
        judged = 0
        for objective in sorted(pairs.frame["objective_id"].unique().to_list()):
            chosen = readable & (pairs.frame["objective_id"] == objective)
            part = PreferencePairs(frame=pairs.frame.filter(chosen))
            if len(part) == 0:
                continue
            if len(part) < _FEWEST:
                raise DataError(
                    f"{where} judges pairs about {_name(objective)}, of which there are only {len(part)}; "
                    f"it needs {_FEWEST}"
                )
            judged += len(part)
            # Filters keep pair ids, which tell where a pair stood.
            parts.append(
                built(part).frame.join(
                    pairs.frame.select("pair_id").with_columns(place), on="pair_id", maintain_order="left"
                )
            )
        if judged == 0:
            raise DataError(f"{where} judges pairs of {', '.join(sorted(config.reads))}, and there are none; drop it")
        cleaned = pl.concat(parts).sort("place")
        before = pairs.frame["label_noise_prob"].gather(cleaned["place"])
        left = PreferencePairs(frame=cleaned.drop("place"))
        report.append(
            {
                "kind": config.kind,
                "judged": judged,
                "dropped": len(pairs) - len(left),
                "relabelled": int((before != left.frame["label_noise_prob"]).sum()),
                "pairs": len(left),
            }
        )
        if len(left) == 0:
            raise DataError(f"{where} leaves none of {len(pairs)} pairs; make it milder")
        pairs = left
    return pairs, report


def _name(objective: int) -> str:
    return OBJECTIVES[objective] if objective < len(OBJECTIVES) else f"objective {objective}"
