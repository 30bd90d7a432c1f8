"""Worlds whose truth is known: what an estimator says of their logs can be compared with what is so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.simulator.off_policy.log import BanditLog, FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Contexts that come equally often, with a reward of 0 or 1 for each action."""

    expected: FloatArray
    """float64 [C, K]: how likely each action is rewarded."""
    behaviour: FloatArray
    """float64 [C, K]: the policy that serves."""
    target: FloatArray
    """float64 [C, K]: the policy under test."""

    @classmethod
    def drawn(cls, num_contexts: int = 5, num_actions: int = 10, *, seed: int, sharpness: float = 2.0) -> World:
        """Rewards are drawn between 0.1 and 0.6; the one policy likes good actions a little, the other one more.

        Args:
            num_contexts: C.
            num_actions: K.
            seed: of the world.
            sharpness: of the target; with 0 it is uniform.
        """
        random = np.random.default_rng(seed)
        expected = random.uniform(0.1, 0.6, (num_contexts, num_actions))
        return cls(
            expected=expected,
            behaviour=_softmax(random.normal(size=expected.shape) * 0.5 + expected),
            target=_softmax(sharpness * 2 * expected + random.normal(size=expected.shape) * 0.5),
        )

    @property
    def truth(self) -> float:
        """What the target earns a round."""
        return float((self.target * self.expected).sum(axis=1).mean())

    def ips_variance(self) -> float:
        """Of w r in one round: the mean squared error of IPS times the rounds."""
        second = (np.square(self.target) / self.behaviour * self.expected).sum(axis=1).mean()
        return float(second - self.truth**2)

    def log(self, num_rounds: int, *, seed: int, rounds_per_user: int = 1, taste: float = 0.0) -> BanditLog:
        """Rounds that the one policy served.

        Args:
            num_rounds: n.
            seed: of the rounds.
            rounds_per_user: users come in turn so often.
            taste: by which share one half of the users likes all actions more, and the other half less: their rounds
                depend on each other, and the truth is the same.
        """
        random = np.random.default_rng(seed)
        users = np.arange(num_rounds) // rounds_per_user
        contexts = random.integers(0, len(self.expected), num_rounds)
        cumulative = np.cumsum(self.behaviour, axis=1)
        actions = np.empty(num_rounds, dtype=np.int64)
        chances = random.random(num_rounds)
        for context, row in enumerate(cumulative):
            rows = contexts == context
            actions[rows] = np.searchsorted(row, chances[rows] * row[-1], side="right")
        likely = self.expected[contexts, actions]
        if taste:
            likely = likely * (1 + taste * random.choice([-1.0, 1.0], users[-1] + 1)[users])
        rewards = (random.random(num_rounds) < likely).astype(np.float64)
        return BanditLog(
            actions=actions,
            rewards=rewards,
            propensities=self.behaviour[contexts, actions],
            num_actions=self.expected.shape[1],
            users=users,
            contexts=contexts,
            features=np.eye(len(self.expected)),
            behaviour=self.behaviour,
        )


def _softmax(scores: FloatArray) -> FloatArray:
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
