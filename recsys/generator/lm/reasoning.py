"""Reasons before an answer: the cases to explain, the reasons as text, and the history rewritten without noise.

The five steps of GREAM (arXiv 2510.20815): behavioural evidence, latent preference, intent, the recommendation, and the
denoised sequence. A teacher writes the first three; the recommendation is the answer itself. How GREAM denoises is not
published (its code copies the history), so the rule here is ours: an item is kept if it is nearer to the target, or to
a sentence on the preference, than the median of its history. Knows no teachers and no prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from recsys.data import IntArray, Sequences
from recsys.encoder.collaborative import FloatArray, unit_rows
from recsys.generator.lm.config import ReasoningConfig
from recsys.generator.lm.histories import Histories, latest_places
from recsys.generator.lm.templates import REASONS

Embed = Callable[[Sequence[str]], FloatArray]
"""Texts to float32 [n, dim]."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training interaction and what came before it, in rows of the catalogue."""

    place: int
    """Index of the target into the training items."""
    user: int
    """User index."""
    history: tuple[int, ...]
    """Oldest first, without the target."""
    target: int
    """What the user took next."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The reasons for one case; each is one line, none is empty."""

    evidence: str
    """What stands out in the history."""
    preference: str
    """What the user likes, to judge by it."""
    intent: str
    """What the user is after now."""

    def write(self, steps: str) -> str:
        """The text of the reasons; `steps` is the wording of `templates.reasoning.steps`."""
        return steps.format(evidence=self.evidence, preference=self.preference, intent=self.intent)

    @classmethod
    def read(cls, text: str, steps: str) -> Chain | None:
        """The reasons in a text that `write` made, or a model like it; None where it does not have that form."""
        parts = (
            re.escape(literal) + (f"(?P<{name}>[^\\n]+)" if name is not None else "")
            for literal, name, _, _ in Formatter().parse(steps)
        )
        match = re.fullmatch("".join(parts), text)
        return None if match is None else cls(**{reason: match[reason].strip() for reason in REASONS})


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """What is said between the history of a case and its answer."""

    chain: Chain
    """The reasons."""
    kept: tuple[int, ...] | None
    """Which items of the history are repeated before the answer, by their number in it; None: it is not repeated."""


def find_cases(config: ReasoningConfig, train: Sequences, max_history: int, *, seed: int, rows: IntArray) -> list[Case]:
    """The latest training interactions of each user that have history enough.

    Args:
        config: how many.
        train: training sequences.
        max_history: items of a history at most, as in the prompts.
        seed: of the draw when there are more than `config.max_cases`.
        rows: int64 [n], the row in the catalogue of each item of `train`.
    """
    histories = Histories(train, max_history)
    cases = []
    for place in latest_places(train, config.cases_per_user).tolist():
        history = histories.before(place)
        if len(history) >= config.min_history:
            cases.append(
                Case(
                    place=place,
                    user=histories.user(place),
                    history=tuple(rows[list(history)].tolist()),
                    target=int(rows[histories.target(place)]),
                )
            )
    if config.max_cases is not None and len(cases) > config.max_cases:
        chosen = np.random.default_rng(seed).choice(len(cases), config.max_cases, replace=False)
        cases = [cases[number] for number in np.sort(chosen).tolist()]
    return cases


def rewrite_histories(
    config: ReasoningConfig,
    cases: Sequence[Case],
    chains: Sequence[Chain | None],
    vectors: FloatArray | None = None,
    embed: Embed | None = None,
) -> Mapping[int, Reasons]:
    """Reasons by place, for the cases that have a chain.

    Args:
        config: which rewriting.
        cases: n cases.
        chains: n chains.
        vectors: float32 [num_items, dim] by row of the catalogue; `denoised` needs them.
        embed: puts sentences into the space of `vectors`; without it, only the target says what counts.

    Raises:
        ValueError: `denoised` is asked for and there are no vectors, or `embed` has another dimension.
    """
    explained = [(case, chain) for case, chain in zip(cases, chains, strict=True) if chain is not None]
    if config.rewriting == "none":
        return {case.place: Reasons(chain=chain, kept=None) for case, chain in explained}
    if config.rewriting == "copy":
        return {case.place: Reasons(chain=chain, kept=tuple(range(len(case.history)))) for case, chain in explained}
    if vectors is None:
        raise ValueError("vectors: reasoning.rewriting=denoised needs a vector an item; pass them, or use copy or none")
    units = unit_rows(vectors)
    sentences = [_sentences(chain.preference) if embed is not None else [] for _, chain in explained]
    flat = [sentence for each in sentences for sentence in each]
    said = unit_rows(embed(flat)) if embed is not None and flat else units[:0]
    if said.shape[1] != units.shape[1]:
        raise ValueError(
            f"embed: has dimension {said.shape[1]}, vectors have {units.shape[1]}; use one encoder for both"
        )
    ends = np.cumsum([len(each) for each in sentences])
    reasons = {}
    for number, (case, chain) in enumerate(explained):
        about = said[ends[number] - len(sentences[number]) : ends[number]]
        references = np.concatenate([units[case.target][None], about])
        kept = relevant_items(units[list(case.history)], references, config.min_kept)
        reasons[case.place] = Reasons(chain=chain, kept=tuple(kept.tolist()))
    return reasons


def relevant_items(history: FloatArray, references: FloatArray, min_kept: int) -> IntArray:
    """int64, ascending: which items of a history bear on what is referred to.

    Those whose cosine to any reference is above the median of the history's cosines to it, and, if they are fewer than
    `min_kept`, the nearest others, the later one first where they are equally near.

    Args:
        history: float32 [n, dim], unit rows, oldest first.
        references: float32 [m, dim], unit rows, m >= 1.
        min_kept: at least so many are kept, if the history has them.
    """
    cosines = history @ references.T
    above = (cosines > np.median(cosines, axis=0)).any(axis=1)
    nearest = np.lexsort((-np.arange(len(history)), -cosines.max(axis=1), ~above))
    return np.sort(nearest[: max(int(above.sum()), min_kept)]).astype(np.int64)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)
