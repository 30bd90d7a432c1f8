"""From a catalogue and a log of interactions to a calibrated choice model, which says what was fitted and what was set.

Weights are cross-fitted: the choices of a user are seen through vectors and counts of *other* users of the log. Vectors
that know a user's own history would make its next item look nearer than it will to anybody new, and every probability
would be overconfident (measured on Scientific: a temperature of 2.9 was needed, against 1.0 so).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.catalog import Catalog
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError
from recsys.progress import progress_bar
from recsys.simulator.behaviour.affinity import POWERS
from recsys.simulator.behaviour.choice_sets import ChoiceSets, Featurizer, log_popularity, sampled_choices
from recsys.simulator.behaviour.fitting import FitConfig, choice_utilities, fit_temperature, fit_weights
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.model import ChoiceModel, ChoiceParameters
from recsys.simulator.behaviour.patience import Patience, fit_patience
from recsys.simulator.behaviour.succession import successions
from recsys.simulator.behaviour.vectors import (
    FloatArray,
    ItemVectors,
    content_vectors,
    main_categories,
    taste_vectors,
)

DoubleArray = npt.NDArray[np.float64]

BLOCKS = ("taste", "content")
"""Of the item vectors, in order."""

_PARTS = 4
_PLACES = 50


def fit_choice_model(catalog: Catalog, sessions: LoggedSessions, config: FitConfig) -> ChoiceModel:
    """Fit to users whom no recommender under test has seen.

    Args:
        catalog: of all items.
        sessions: the users' whole histories, with sessions where the log has times.
        config: settings.

    Raises:
        DataError: there are too few users or choices.
    """
    log = sessions.log
    if len(log) < 2 * _PARTS:
        raise DataError(f"choice model: {len(log)} users are too few to fit it on; give {2 * _PARTS} or more")
    random = np.random.default_rng(config.seed)
    shuffled = random.permutation(len(log))
    num_held = max(1, round(config.calibration_share * len(log)))
    content, categories = content_vectors(catalog), main_categories(catalog)
    fitting: list[ChoiceSets] = []
    held: list[ChoiceSets] = []
    with progress_bar("Choices of simulated users", _PARTS) as advance:
        for part in range(_PARTS):
            own = np.arange(len(shuffled)) % _PARTS == part
            featurize = _featurizer(log.select(shuffled[~own]), content, categories, config)
            for_temperature = np.arange(len(shuffled)) < num_held
            for sets, rows in ((fitting, own & ~for_temperature), (held, own & for_temperature)):
                chosen = sessions.select(shuffled[rows])
                if (chosen.log.lengths > 1).any():
                    sets.append(
                        sampled_choices(
                            chosen.log,
                            featurize,
                            alternatives=config.alternatives,
                            most_per_user=config.most_per_user,
                            seed=config.seed + part,
                            session_starts=chosen.starts,
                        )
                    )
            advance(1, "")
    if not fitting or not held:
        raise DataError("choice model: hardly any history has two items; give a longer log")
    weights = fit_weights(ChoiceSets.concatenate(fitting), config.penalty)
    aside = ChoiceSets.concatenate(held)
    temperature = fit_temperature(aside, choice_utilities(aside, weights.features, weights.constants))
    final = _featurizer(log, content, categories, config)
    return ChoiceModel(
        vectors=final.vectors,
        successions=final.successions,
        log_popularity=final.log_popularity,
        categories=categories,
        constants=(weights.constants / temperature).astype(np.float32),
        parameters=_parameters(weights.features / temperature, sessions, config),
    )


def _featurizer(log: Sequences, content: FloatArray, categories: IntArray, config: FitConfig) -> Featurizer:
    num_items = len(content)
    return Featurizer(
        vectors=ItemVectors(blocks=dict(zip(BLOCKS, (taste_vectors(log, num_items), content), strict=True))),
        successions=successions(log, num_items),
        log_popularity=log_popularity(log, num_items),
        categories=categories,
        decays=config.decays,
    )


def _parameters(features: DoubleArray, sessions: LoggedSessions, config: FitConfig) -> ChoiceParameters:
    # By block, decay and power, as `Featurizer` has them.
    by_block = features[:-3].reshape(len(BLOCKS), len(config.decays), len(POWERS)).tolist()
    taste = {name: tuple(map(tuple, weights)) for name, weights in zip(BLOCKS, by_block, strict=True)}
    timed = sessions.starts is not None
    fitted = "fitted to choices among drawn alternatives, temperature to held-out users"
    no_times = "set: the log has no times, so no sessions"
    no_slates = "set: the log has no slates"
    return ChoiceParameters(
        decays=config.decays,
        taste=taste,
        succession=float(features[-3]),
        popularity=float(features[-2]),
        satiation=float(features[-1]) if timed else 0.0,
        position_bias=tuple((-config.position_decay * np.log2(np.arange(1, _PLACES + 1))).tolist()),
        patience=fit_patience(sessions.leaving()) if timed else Patience(),
        origin={
            "taste": fitted,
            "succession": fitted,
            "popularity": fitted,
            "decays": "set",
            "satiation": fitted + ", not below 0" if timed else no_times,
            "temperature": fitted + "; it is part of the weights",
            "null": no_slates + "; what a slate does not show is found elsewhere",
            "position_bias": no_slates,
            "patience.base": "fitted to lengths of sessions, each user counting once" if timed else no_times,
            "patience.per_null": no_slates,
            "patience.per_reward": no_slates,
        },
    )
