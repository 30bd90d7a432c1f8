"""A reward model for proposals, and reward models as files: weights as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.alignment.reward_models.features import UserItemFeatures
from recsys.alignment.reward_models.head import HeadConfig, RewardHead
from recsys.alignment.reward_models.pal import IdealPoints, PalConfig
from recsys.alignment.reward_models.quality import RewardQuality, margin_scale
from recsys.data import Sequences
from recsys.errors import ArtifactError
from recsys.files import atomic_directory, write_json

_FORMAT = 1
_FACTS, _WEIGHTS = "reward_model.json", "reward_model.safetensors"
# `load_state_dict` raises RuntimeError for other shapes or names.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ValidationError)


class RewardModel:
    """A head over `UserItemFeatures`: rewards any item for any history. What `rewards.learned` reads.

    Args:
        features: of the catalogue.
        head: fitted on them.
        quality: on pairs that it was not trained on.
    """

    def __init__(self, features: UserItemFeatures, head: RewardHead, quality: RewardQuality | None = None) -> None:
        self.features = features
        self.head = head
        self.quality = quality

    @torch.no_grad()
    def __call__(self, histories: Sequences, items: Tensor) -> Tensor:
        """float32 [B, G] on the CPU, for items int64 [B, G]; beside -1 it says nothing."""
        rewards: Tensor = self.head(self.features(histories, items))
        return rewards

    def margins(self, histories: Sequences, chosen: Tensor, rejected: Tensor) -> npt.NDArray[np.float32]:
        """float32 [B]: r(chosen) - r(rejected) of items int64 [B] each."""
        rewards = self(histories, torch.stack([chosen, rejected], dim=1))
        return np.asarray((rewards[:, 0] - rewards[:, 1]).numpy())

    def calibrate(self, histories: Sequences, chosen: Tensor, rejected: Tensor) -> float:
        """Rescale rewards so that confidences fit pairs that were not trained on; returns the factor."""
        factor = margin_scale(self.margins(histories, chosen, rejected))
        self.head.rescale(factor)
        self.quality = None  # was measured at another scale
        return factor

    def measure(self, histories: Sequences, chosen: Tensor, rejected: Tensor) -> RewardQuality:
        """Measure, and keep as `quality`, on pairs that neither training nor `calibrate` saw."""
        self.quality = RewardQuality.of(self.margins(histories, chosen, rejected))
        return self.quality

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all; the item vectors are an artifact of their own."""
        facts = {
            "kind": "head",
            "config": self.head.config.model_dump(mode="json", include=set(HeadConfig.model_fields)),
            "num_features": self.features.num_features,
            "num_items": self.features.num_items,
            "decay": self.features.decay,
            "quality": None if self.quality is None else self.quality.to_json(),
        }
        _save(directory, self.head, facts)

    @classmethod
    def load(cls, directory: Path, item_vectors: npt.NDArray[np.float32]) -> RewardModel:
        """Read what `save` wrote, over the item vectors of the same run.

        Raises:
            ArtifactError: a file is missing or damaged, or the vectors are others.
        """
        try:
            facts = _read_facts(directory, "head")
            features = UserItemFeatures(item_vectors, facts["decay"])
            if (features.num_items, features.num_features) != (facts["num_items"], facts["num_features"]):
                raise ValueError(
                    f"made over {facts['num_items']} items with {facts['num_features']} features, these vectors give "
                    f"{features.num_items} with {features.num_features}"
                )
            head = RewardHead(facts["num_features"], HeadConfig.model_validate(facts["config"]))
            head.load_state_dict(load_file(directory / _WEIGHTS))
            quality = None if facts["quality"] is None else RewardQuality.from_json(facts["quality"])
        except _UNREADABLE as error:
            raise _unreadable(directory, error) from error
        return cls(features, head, quality)


def save_ideal_points(directory: Path, model: IdealPoints) -> None:
    """Write a PAL model's directory, whole or not at all."""
    facts = {
        "kind": "ideal_points",
        "config": model.config.model_dump(mode="json"),
        "num_features": model.map.in_features,
        "num_users": len(model.user_logits),
    }
    _save(directory, model, facts)


def load_ideal_points(directory: Path) -> IdealPoints:
    """Read what `save_ideal_points` wrote; ArtifactError when it is missing or damaged."""
    try:
        facts = _read_facts(directory, "ideal_points")
        config = PalConfig.model_validate(facts["config"])
        model = IdealPoints(facts["num_features"], facts["num_users"], config)
        model.load_state_dict(load_file(directory / _WEIGHTS))
    except _UNREADABLE as error:
        raise _unreadable(directory, error) from error
    return model


def _unreadable(directory: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"cannot read the reward model in {directory}: {str(error).splitlines()[0]}; make it again")


def _save(directory: Path, module: nn.Module, facts: dict[str, Any]) -> None:
    with atomic_directory(directory) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, temporary / _WEIGHTS)
        write_json(temporary / _FACTS, {"format": _FORMAT, **facts})


def _read_facts(directory: Path, kind: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((directory / _FACTS).read_text())
    if facts["format"] != _FORMAT or facts["kind"] != kind:
        raise ValueError(f"format {facts['format']} of kind {facts['kind']!r}, expected {_FORMAT} of kind {kind!r}")
    return facts
