"""Making room in a model for weights that another one of its kind had."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recsys.generator.any_order import AnyOrderModel
from recsys.generator.depth import DepthDecoder, DepthHeads, split_heads
from recsys.generator.flat import FlatModel
from recsys.generator.nested import NestedModel


def make_room(
    model: NestedModel | FlatModel | AnyOrderModel, weights: Mapping[str, Tensor], objectives: Mapping[str, float]
) -> None:
    """Take the words of `weights`, which may be more than those of today's package, and a head an objective."""
    if model.instruction.is_given and "instruction.tokens" in weights:
        model.instruction.set(weights["instruction.tokens"].tolist())
    if model.users is not None and "users.words" in weights:
        model.users.words = weights["users.words"]
    if objectives and isinstance(model, NestedModel) and isinstance(model.depth, DepthDecoder):
        model.depth = split_heads(model.depth, list(objectives), objectives, noise=0, seed=0)


def heads_of(model: NestedModel | FlatModel | AnyOrderModel) -> DepthHeads | None:
    """The heads of objectives, where the model has some."""
    return model.depth if isinstance(model, NestedModel) and isinstance(model.depth, DepthHeads) else None
