"""Moving a generator to a device: weights, buffers and the catalogue, whose tensors are no module's."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor

from recsys.generator.any_order import AnyOrderModel
from recsys.generator.flat import FlatModel
from recsys.generator.nested import NestedModel
from recsys.generator.set_trie import SetTrie
from recsys.generator.trie import ItemTrie

_Trie = TypeVar("_Trie", ItemTrie, SetTrie)


def place(
    model: NestedModel | FlatModel | AnyOrderModel, device: torch.device, precision: torch.dtype = torch.float32
) -> None:
    """Move `model` in place; its trie is replaced by a copy on `device`, as others may use it where it is.

    Args:
        model: of any shape.
        device: where to.
        precision: of the weights of a body that will not be trained any more, and of its keys and values; all else
            stays float32. Weights that were made less precise stay so.
    """
    model.to(device)
    if precision != torch.float32:
        for weight in model.body.transformer.parameters():
            # Buffers keep theirs: positions would not survive it.
            weight.data = weight.data.to(precision)
    if isinstance(model, AnyOrderModel):
        model.trie = on_device(model.trie, device)
    else:
        model.trie = on_device(model.trie, device)


def on_device(trie: _Trie, device: torch.device) -> _Trie:
    """A copy of `trie` whose tables are on `device`.

    Raises:
        ValueError: further items are looked up beside its tables, which is for the memory of the CPU.
    """
    if device.type != "cpu" and isinstance(trie, ItemTrie) and not isinstance(trie.items, Tensor):
        raise ValueError(f"a trie with items beside its tables stays on the CPU, not {device}; make one of all items")
    twin = copy.copy(trie)
    for name, value in vars(trie).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.to(device))
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            setattr(twin, name, [table.to(device) for table in value])
    return twin
