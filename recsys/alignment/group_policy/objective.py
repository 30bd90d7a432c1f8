"""What the loop of group policy optimisation asks of a policy, whether it reasons or not."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor

from recsys.alignment.rollouts import Rollouts
from recsys.data import Sequences


class HasRollouts(Protocol):
    """What was proposed."""

    @property
    def rollouts(self) -> Rollouts:
        """What rewards read."""


class HasHealth(Protocol):
    """What was judged."""

    @property
    def health(self) -> dict[str, float]:
        """What to log; more may be put in."""


S = TypeVar("S", bound=HasRollouts)
J = TypeVar("J", bound=HasHealth)


class Objective(Protocol[S, J]):
    """A policy, its reference and its loss."""

    @property
    def levels_by_history(self) -> bool:
        """Whether rewards measure levels of each row from the reference's rollouts for it; False for one for all rows.

        Where it is False the reference is not asked again and again.
        """

    def propose(
        self,
        histories: Sequences,
        *,
        futures: Tensor,
        mask_seen: bool,
        random: np.random.Generator,
        by_reference: bool = False,
    ) -> S:
        """What the policy, or its reference, proposes for B histories.

        Args:
            histories: B histories, none empty.
            futures: int64 [B, N], see `Rollouts`.
            mask_seen: leave out the items of each history.
            random: of what is drawn.
            by_reference: ask the reference.
        """

    def judge(self, sampled: S, rewards: Tensor) -> J:
        """Advantages from rewards, float32 of the shape of the rollouts' items; RewardError if they are not finite."""

    def learn(self, judged: J, *, is_first: bool) -> dict[str, float]:
        """Add the gradients of the loss to the policy's; the health of the step.

        `is_first`: no step was taken since the rollouts were proposed.
        """

    def legality(self, judged: J) -> float:
        """Unconstrained legality (see the module of that name) of some of the proposals, without dropout."""
