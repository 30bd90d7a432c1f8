"""The candidates of several sources, one set a history. Knows no ranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.generator.constraints import Constraints
from recsys.progress import progress_bar
from recsys.retrieval.features import Candidates, candidate_features, feature_names, union
from recsys.retrieval.sources import BoolArray, Proposal, Source

_BATCH = 256


class Pool:
    """The candidates of several sources.

    Args:
        sources: by name, `popularity` among them: it has something for every history.
        is_new: bool [num_items]: items without an interaction in training.
        depth: candidates that each source gives.
    """

    def __init__(self, sources: Mapping[str, Source], is_new: BoolArray, depth: int) -> None:
        self.sources = dict(sources)
        self.names = feature_names(tuple(sources))
        self.depth = depth
        self.is_new = is_new

    def propose(
        self, histories: Sequences, k: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> dict[str, Proposal]:
        """What every source says; together they have at least k permitted items for each history, or all."""
        n = min(max(self.depth, k), len(self.is_new))
        return {name: source.propose(histories, n, constraints, sessions) for name, source in self.sources.items()}

    def candidates(self, proposals: Mapping[str, Proposal]) -> Candidates:
        """The union of what was proposed, with its features."""
        items = union(proposals)
        exists = items >= 0
        return Candidates(
            offsets=np.append(0, np.cumsum(exists.sum(axis=1))),
            items=items[exists],
            features=candidate_features(proposals, items, self.is_new)[exists],
        )

    def of_cases(self, cases: Examples, *, mask_seen: bool) -> tuple[Candidates, IntArray]:
        """Candidates of cases, and int64 [B] where each case's target is among them; -1 where it is not."""
        parts: list[Candidates] = []
        with progress_bar("Candidates", len(cases)) as advance:
            for begin in range(0, len(cases), _BATCH):
                histories = cases.histories.select(np.arange(begin, min(begin + _BATCH, len(cases))))
                constraints = Constraints(deny=list(histories) if mask_seen else None)
                parts.append(self.candidates(self.propose(histories, 1, constraints)))
                advance(len(histories), "")
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        candidates = Candidates(
            offsets=np.append(0, np.cumsum(sizes)),
            items=np.concatenate([part.items for part in parts]),
            features=np.concatenate([part.features for part in parts]),
        )
        hits = np.flatnonzero(candidates.items == np.repeat(cases.targets, sizes))
        chosen = np.full(len(cases), -1, dtype=np.int64)
        chosen[np.searchsorted(candidates.offsets, hits, side="right") - 1] = hits
        return candidates, chosen
