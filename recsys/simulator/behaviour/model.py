"""How a simulated user chooses from a slate, or chooses nothing. Knows no sessions and fits nothing.

The utility of item i for a user with history h, who took the items `s` last in this session, is

    u(i) = sum over blocks, decays and powers of w * cos(memory of h, i)^p
           + w_suc * log(1 + how often i came soon after the latest items of h in the log)
           + w_pop * log popularity(i) + constant of the category of i - k * cos(i, mean of s)

and of a slate the item at place l is chosen with the probability of a multinomial logit with an outside option
(McFadden, 1974; position bias and no-choice as in RecSim, arXiv:1909.04847, section 4):

    P(l) = b_l * exp(u_l / T) / (exp(v / T) + sum over places m of b_m * exp(u_m / T)),    v = null + log Z(h)

`Z(h)`, the sum of exp(u) over the whole catalogue when the session begins, is what the user would find elsewhere. It
makes utilities of users comparable: with null = 0, T = 1 and no position bias, a slate that holds the share m of a
user's preferences is taken from with probability m / (1 + m).

Shapes: B users, V items, D columns, S places of a slate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ArtifactError
from recsys.files import atomic_directory, write_json
from recsys.simulator.behaviour.affinity import POWERS, affinities
from recsys.simulator.behaviour.choice_sets import Featurizer
from recsys.simulator.behaviour.history import Memories
from recsys.simulator.behaviour.patience import Patience
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.behaviour.succession import succession_evidence
from recsys.simulator.behaviour.vectors import ItemVectors

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

_FORMAT = 3
_TABLES = ("log_popularity", "categories", "constants")
_SPARSE = ("data", "indices", "indptr")
_FILE = "choice_model.json"
_BLOCK = 256


class ChoiceParameters(StrictConfig):
    """All numbers of the model that are not vectors."""

    decays: tuple[float, ...] = Field(default=(0.0, 0.6, 0.97), min_length=1)
    """How slowly memories fade, an item's age being counted in choices; each in 0..1."""
    taste: dict[str, tuple[tuple[float, ...], ...]]
    """By block of vectors, for each decay a weight for each power of the cosine, see `affinity.POWERS`."""
    succession: float = 0.0
    """Weight of what followed the latest items in the log, see `succession.succession_evidence`."""
    popularity: float = 0.0
    """Weight of an item's log count (plus one) in the log of the fit, centred over the catalogue."""
    satiation: float = 0.0
    """k: what is like the last three choices of the session loses so much; below 0 it gains."""
    null: float = 0.0
    """Utility of no choice above what the whole catalogue is worth to the user."""
    position_bias: tuple[float, ...] = (0.0,)
    """log b_l by place, the first one 0; later places are as the last one."""
    temperature: float = Field(default=1.0, gt=0)
    """T: above 1 choices are more random."""
    patience: Patience = Patience()
    """When a session ends."""
    origin: dict[str, str] = Field(default={})
    """Where each number comes from: `fitted`, or `set` and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceModel:
    """Item vectors and parameters; everything else follows from these.

    Raises:
        ArtifactError: the parts do not fit each other.
    """

    vectors: ItemVectors
    successions: sparse.csr_array
    """float32 [V, V], see `succession.successions`."""
    log_popularity: FloatArray
    """float32 [V], mean 0."""
    categories: IntArray
    """int64 [V], from 0."""
    constants: FloatArray
    """float32 [categories]: utility of an item for its category alone."""
    parameters: ChoiceParameters

    def __post_init__(self) -> None:
        shape = (len(self.parameters.decays), len(POWERS))
        taste = self.parameters.taste
        if list(self.vectors.blocks) != list(taste) or any(np.shape(weights) != shape for weights in taste.values()):
            raise ArtifactError(
                f"choice model: parameters.taste must have {shape[0]} x {shape[1]} weights for each of "
                f"{', '.join(self.vectors.blocks)}, in that order; fit it again"
            )
        vectors = self.vectors.blocks.values()
        sizes = {len(self.log_popularity), len(self.categories), *self.successions.shape, *map(len, vectors)}
        if len(sizes) > 1:
            raise ArtifactError("choice model: its tables differ in their number of items; fit it again")
        if self.categories.min() < 0 or self.categories.max() >= len(self.constants):
            raise ArtifactError("choice model: an item is of a category without a constant; fit it again")

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.log_popularity)

    @property
    def featurizer(self) -> Featurizer:
        """Makes the numbers that `feature_weights` weigh."""
        return Featurizer(
            vectors=self.vectors,
            successions=self.successions,
            log_popularity=self.log_popularity,
            categories=self.categories,
            decays=self.parameters.decays,
        )

    @cached_property
    def feature_weights(self) -> DoubleArray:
        """float64 [F], as `Featurizer` orders them, by the temperature."""
        taste = [weight for block in self.parameters.taste.values() for decay in block for weight in decay]
        own = self.parameters
        return np.array([*taste, own.succession, own.popularity, own.satiation]) / own.temperature

    @property
    def category_constants(self) -> DoubleArray:
        """float64 [C], by the temperature."""
        return self.constants.astype(np.float64) / self.parameters.temperature

    def remember(self, histories: Sequences) -> Memories:
        """Memories of histories."""
        return Memories.of(histories, self.vectors.joined, self.parameters.decays)

    def remember_choices(self, memories: Memories, rows: IntArray, items: IntArray) -> None:
        """Users at `rows` take one more item each; `memories` are changed in place."""
        memories.add(rows, items, self.vectors.joined, self.parameters.decays)

    def utilities(self, memories: Memories, recent: IntArray, items: IntArray | None, traits: Traits) -> FloatArray:
        """float32 [B, S].

        Args:
            memories: of B users.
            recent: int64 [B, 3]: the last choices of the session, -1 where there are none.
            items: int64 [B, S]; an empty place, -1, has -inf. None for the whole catalogue, S = V.
            traits: of the B users.
        """
        *columns, tired = affinities(self.vectors, memories.sums, recent, items)
        weights = [weight for block in self.parameters.taste.values() for decay in block for weight in decay]
        found = tired * np.float32(self.parameters.satiation)
        if self.parameters.succession:
            followed = succession_evidence(self.successions, memories.latest, items)
            found += np.float32(self.parameters.succession) * followed
        for weight, column in zip(weights, columns, strict=True):
            found += np.float32(weight) * column
        found += self.constants[self.categories if items is None else self.categories[items]]
        found *= traits.taste[:, None]
        popularity = np.float32(self.parameters.popularity) + traits.popularity[:, None]
        if items is None:
            return np.asarray(found + popularity * self.log_popularity)
        return np.where(items >= 0, found + popularity * self.log_popularity[items], np.float32(-np.inf))

    def log_worth(self, memories: Memories, recent: IntArray, traits: Traits) -> DoubleArray:
        """float64 [B]: log Z, of the sum of exp(utility) over the catalogue."""
        found = np.empty(len(memories))
        for begin in range(0, len(memories), _BLOCK):
            rows = np.arange(begin, min(begin + _BLOCK, len(memories)))
            utilities = self.utilities(memories.select(rows), recent[rows], None, traits.select(rows))
            highest = utilities.max(axis=1)
            found[rows] = highest + np.log(np.exp(utilities - highest[:, None]).sum(axis=1))
        return found

    def place_bias(self, size: int) -> DoubleArray:
        """float64 [size]: log b of each place."""
        known = self.parameters.position_bias
        return np.array([known[min(place, len(known) - 1)] for place in range(size)])

    def having(self, **changes: object) -> ChoiceModel:
        """The same model with other parameters."""
        return replace(self, parameters=self.parameters.model_copy(update=changes))

    def save(self, directory: Path, report: dict[str, Any] | None = None) -> None:
        """Write `vectors.safetensors` and `choice_model.json`; `report` says how good it is."""
        with atomic_directory(directory) as temporary:
            blocks = {f"block.{name}": np.ascontiguousarray(block) for name, block in self.vectors.blocks.items()}
            tables = {name: getattr(self, name) for name in _TABLES}
            counts = {f"successions.{part}": getattr(self.successions, part) for part in _SPARSE}
            save_file({**blocks, **tables, **counts}, temporary / "vectors.safetensors")
            facts = {
                "format": _FORMAT,
                "blocks": list(self.vectors.blocks),
                "parameters": self.parameters.model_dump(mode="json"),
                "report": report or {},
            }
            write_json(temporary / _FILE, facts)

    @classmethod
    def load(cls, directory: Path) -> tuple[ChoiceModel, dict[str, Any]]:
        """Read what `save` wrote: the model and its report.

        Raises:
            ArtifactError: a file is missing, damaged, or of another version.
        """
        try:
            facts = json.loads((directory / _FILE).read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(
                    f"choice model: {directory} has format {facts['format']}, not {_FORMAT}; delete it and fit again"
                )
            tensors = load_file(directory / "vectors.safetensors")
            counts = [tensors[f"successions.{part}"] for part in _SPARSE]
            num_items = len(counts[-1]) - 1
            model = cls(
                vectors=ItemVectors(blocks={name: tensors[f"block.{name}"] for name in facts["blocks"]}),
                successions=sparse.csr_array(tuple(counts), shape=(num_items, num_items)),
                **{name: tensors[name] for name in _TABLES},
                parameters=ChoiceParameters.model_validate(facts["parameters"]),
            )
            return model, dict(facts["report"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"choice model: cannot read {directory}: {reason}; fit it again") from error
