"""Sessions of one simulated user at a time, behind the interface of Gymnasium: for agents that learn from them.

An action is a slate; the reward is 1 for a choice. The user is a crowd of one (`sessions.crowd`), so that a seed gives
the same choices here and in `sessions.play`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ConfigError
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import Kind, Traits
from recsys.simulator.sessions.crowd import Crowd

FloatArray = npt.NDArray[np.float32]

_MOST_SEED = 2**31


class SlateSessions(gymnasium.Env[dict[str, Any], IntArray]):
    """Sessions of the users of a population, drawn at random unless `reset` is told who comes.

    - Action: int64 [size], item indices, best place first. An item that stands there twice is shown once.
    - Observation: `memory` float32 [L * D], what the user remembers; `last` the item that was taken in the last step,
      `num_items` for none; `step`.
    - Reward: 1 for a choice, 0 for none. `info["item"]` is the choice (-1: none), `info["chances"]` of each place.
    - The episode ends (`terminated`) when the user leaves, and is cut (`truncated`) after `max_steps` pages.

    `reset(seed=..., options={"user": 3, "session": 0})` begins the session that `play` calls so under that seed.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        model: ChoiceModel,
        population: Sequences,
        *,
        size: int = 10,
        max_steps: int = 20,
        kind: Kind = "ordinary",
    ) -> None:
        """`population`: histories; `kind`: of all users. Raises ConfigError for an impossible size."""
        if not 1 <= size <= model.num_items or max_steps < 1 or not len(population):
            raise ConfigError(
                f"environment: size={size} must be in 1..{model.num_items}, max_steps={max_steps} at least 1, and "
                f"there must be users (found {len(population)})"
            )
        self.model = model
        self.population = population
        self.max_steps = max_steps
        self.kind: Kind = kind
        self._crowd: Crowd | None = None
        self._last = model.num_items
        width = len(model.parameters.decays) * model.vectors.joined.shape[1]
        self.action_space = spaces.MultiDiscrete(np.full(size, model.num_items, dtype=np.int64))
        self.observation_space = spaces.Dict(
            {
                "memory": spaces.Box(-np.inf, np.inf, (width,), np.float32),
                "last": spaces.Discrete(model.num_items + 1),
                "step": spaces.Discrete(max_steps + 1),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a session. Raises ConfigError for a user who is not in the population."""
        super().reset(seed=seed)
        chosen = options or {}
        user = int(chosen.get("user", self.np_random.integers(len(self.population))))
        luck = seed if seed is not None else int(self.np_random.integers(_MOST_SEED))
        if not 0 <= user < len(self.population):
            raise ConfigError(f"environment: options.user={user} must lie in 0..{len(self.population) - 1}")
        self._crowd = Crowd(
            self.model,
            self.population.select(np.array([user])),
            users=np.array([user]),
            sessions=np.array([int(chosen.get("session", 0))]),
            seed=luck,
            traits=Traits.of([self.kind]),
        )
        self._last = self.model.num_items
        return self._observed(), {"user": user}

    def step(self, action: IntArray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Show a slate."""
        if self._crowd is None:
            raise RuntimeError("call reset() first")
        slate = np.asarray(action, dtype=np.int64)
        if not self.action_space.contains(slate):
            raise ConfigError(f"environment: the action must be {self.action_space}, found {slate!r}")
        shown = np.full(len(slate), -1, dtype=np.int64)
        first = np.sort(np.unique(slate, return_index=True)[1])
        shown[: len(first)] = slate[first]
        reaction = self._crowd.react(shown[None])
        item, left = int(reaction.items[0]), bool(reaction.left[0])
        self._last = item if item >= 0 else self.model.num_items
        truncated = not left and self._crowd.step >= self.max_steps
        info = {"item": item, "place": int(reaction.places[0]), "chances": reaction.chances[0]}
        return self._observed(), float(item >= 0), left, truncated, info

    def _observed(self) -> dict[str, Any]:
        assert self._crowd is not None
        return {
            "memory": self._crowd.memories.sums[0].ravel().astype(np.float32),
            "last": np.int64(self._last),
            "step": np.int64(self._crowd.step),
        }
