"""A model's loss, as the processes that train it together compute it: DDP or FSDP2 around it, each on its own part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from recsys.generator.recommender import GeneratorModel
from recsys.ranks import Ranks
from training.objectives import BatchLoss, Objective


class _LossOf(nn.Module):
    """An objective's loss as a module's forward, which is what DDP and FSDP2 wrap."""

    def __init__(self, model: GeneratorModel, objective: Objective, *, sharded: bool) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._sharded = sharded

    def forward(self, batch: Any) -> BatchLoss:
        found = self._objective.loss(batch)
        # FSDP2 sums the gradients that are there, so all processes must have the same ones: a part of a batch may
        # leave weights unused that another part needs. Blocks of the body, whose weights are split now, always have.
        if not self._sharded:
            return found
        whole = [each for each in self.model.parameters() if each.requires_grad and not isinstance(each, DTensor)]
        return found.with_loss(found.loss + 0.0 * torch.stack([weight.sum() for weight in whole]).sum())


class SharedLoss:
    """The loss of each global batch, of which every process computes its part.

    Its gradients are those of the mean over the whole batch, whatever the parts' sizes.

    Args:
        model: moved to its device; with split weights (`ranks.sharded`), its weights become parts of tensors.
        objective: makes batches, parts of them, and the loss of a part by this very model.
        ranks: the processes.
    """

    def __init__(self, model: GeneratorModel, objective: Objective, ranks: Ranks) -> None:
        self._objective = objective
        self._ranks = ranks
        self._loss: nn.Module = _LossOf(model, objective, sharded=ranks.size > 1 and ranks.sharded)
        if ranks.size == 1:
            return
        if ranks.sharded:
            mesh = init_device_mesh(model.learned.device.type, (ranks.size,))
            for block in _blocks(model.body):
                fully_shard(block, mesh=mesh)
            fully_shard(self._loss, mesh=mesh)
        else:
            # Buffers are the same everywhere, and a task's batch need not use all weights.
            self._loss = DistributedDataParallel(self._loss, forward_sync_buffers=False, find_unused_parameters=True)

    def backward(self, batch: Any) -> BatchLoss:
        """Gradients of the mean over the global `batch`; what it came to over all processes."""
        ranks = self._ranks
        own = self._objective.part(batch, ranks)
        # With nothing to do here, some of it is done all the same, for nothing: the others wait for gradients.
        found: BatchLoss = self._loss(batch if own is None else own)
        if ranks.size == 1:
            found.loss.backward()  # type: ignore[no-untyped-call]
            return found
        counted = 0.0 if own is None else 1.0
        mine = [found.weight, found.item_loss * found.num_items, found.num_items, found.num_rows, found.num_pairs]
        weight, item_loss, num_items, num_rows, num_pairs = ranks.sums([counted * value for value in mine])
        # Both take the mean over processes of what each one brings.
        share = counted * found.weight * ranks.size / max(weight, 1e-30)
        (found.loss * share).backward()  # type: ignore[no-untyped-call]
        return BatchLoss(
            loss=found.loss.detach(),
            weight=weight,
            item_loss=item_loss / max(1.0, num_items),
            num_items=int(num_items),
            num_rows=int(num_rows),
            num_pairs=int(num_pairs),
        )


def gather_weights(split: nn.Module, whole: nn.Module) -> None:
    """Copy what is trained of a model with split weights, and its buffers, to one with all of them; all must call."""
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in split.state_dict().items()
    }
    whole.load_state_dict(state)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of the outermost lists of modules: a transformer's layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
