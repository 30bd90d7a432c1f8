"""Maximum likelihood for the choice model, and the temperature under which its probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from recsys.config import StrictConfig
from recsys.simulator.behaviour.choice_sets import ChoiceSets

DoubleArray = npt.NDArray[np.float64]

_COOLEST, _HOTTEST = 0.05, 20.0


class FitConfig(StrictConfig):
    """How a choice model is fitted."""

    decays: tuple[float, ...] = Field(default=(0.0, 0.6, 0.97), min_length=1)
    """How slowly memories fade; see `ChoiceParameters.decays`."""
    alternatives: int = Field(default=64, ge=2)
    """Drawn beside each choice of a log that has no slates."""
    most_per_user: int = Field(default=100, ge=1)
    """Choices of a user that are looked at."""
    penalty: float = Field(default=1e-4, ge=0)
    """Times the squared weights, beside the mean negative log-likelihood."""
    calibration_share: float = Field(default=0.2, gt=0, lt=1)
    """Users that the temperature is fitted on; the weights are fitted on the rest."""
    position_decay: float = Field(default=0.3, ge=0)
    """Where a log has no slates: log of the position bias is minus this times log2(place), from 1."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """What a fit found."""

    features: DoubleArray
    """float64 [F]."""
    constants: DoubleArray
    """float64 [C]: utility of an item for its category alone."""
    null: float | None
    """Utility of no choice above the worth of the catalogue; None where it was never possible."""
    places: DoubleArray | None
    """float64 [S]: log of the position bias, the first one 0; None likewise."""


def fit_weights(sets: ChoiceSets, penalty: float) -> Weights:
    """The likeliest weights; with slates also the position bias and what choosing nothing is worth.

    A constant a category makes each as frequent as it is in the log (the alternative-specific constants of McFadden's
    logit). Without slates satiation, the last weight, is not let below 0: choices of a session that are alike may be so
    because what was shown then was alike, and users who want more of what they just took would run away with it.
    """
    features = torch.from_numpy(sets.features).double()
    corrections = torch.from_numpy(sets.corrections)
    chosen = torch.from_numpy(sets.chosen)
    categories = torch.from_numpy(sets.categories)
    catalogue = None if sets.catalogue is None else torch.from_numpy(sets.catalogue).double()
    num_features, num_places = features.shape[2], features.shape[1]
    num_weights = num_features + sets.num_categories
    scale = features[torch.isfinite(corrections)].std(dim=0).clamp(min=1e-6)

    def objective(flat: DoubleArray) -> tuple[float, DoubleArray]:
        parameters = torch.tensor(flat, requires_grad=True)
        weights = parameters[:num_features] / scale
        constants = parameters[num_features:num_weights]
        logits = features @ weights + constants[categories] + corrections
        if catalogue is not None:
            places = torch.cat([torch.zeros(1, dtype=torch.double), parameters[num_weights + 1 :]])
            elsewhere = catalogue @ weights + constants[torch.from_numpy(sets.catalogue_categories)]
            worth = torch.logsumexp(elsewhere, dim=1) + np.log(sets.catalogue_size / catalogue.shape[1])
            nothing = (worth + parameters[num_weights])[:, None]
            logits = torch.cat([logits + places, nothing], dim=1)
        # The place -1, nothing, is the last column where there is one.
        picked = logits.gather(1, (chosen % logits.shape[1])[:, None])[:, 0]
        loss = (torch.logsumexp(logits, dim=1) - picked).mean() + penalty * (parameters[:num_weights] ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert parameters.grad is not None
        return float(loss.detach()), parameters.grad.numpy()

    begin = np.zeros(num_weights + (0 if catalogue is None else num_places))
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(begin)
    if catalogue is None:
        bounds[num_features - 1] = (0, None)
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300}).x
    return Weights(
        features=found[:num_features] / scale.numpy(),
        constants=found[num_features:num_weights],
        null=None if catalogue is None else float(found[num_weights]),
        places=None if catalogue is None else np.concatenate([[0.0], found[num_weights + 1 :]]),
    )


def choice_utilities(sets: ChoiceSets, features: DoubleArray, constants: DoubleArray) -> DoubleArray:
    """float64 [n, S]: of each option, under weights float64 [F] and [C]."""
    return np.asarray(sets.features @ features + constants[sets.categories])


def choice_probabilities(sets: ChoiceSets, utilities: DoubleArray) -> DoubleArray:
    """float64 [n, S]: of each of drawn options with utilities float64 [n, S]."""
    return np.asarray(softmax(utilities + sets.corrections, axis=1))


def fit_temperature(sets: ChoiceSets, utilities: DoubleArray) -> float:
    """The temperature in 0.05..20 under which held-out choices among drawn options are likeliest. Corrections are not
    tempered."""

    def loss(log_temperature: float) -> float:
        logits = utilities / np.exp(log_temperature) + sets.corrections
        picked = np.take_along_axis(log_softmax(logits, axis=1), sets.chosen[:, None], axis=1)
        return float(-picked.mean())

    bounds = (np.log(_COOLEST), np.log(_HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
