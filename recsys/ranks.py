"""The processes that train one model together: which of them this one is, and sums over all of them.

All of them run the same code on the same data with the same seeds, and each takes its own part of every global batch:
the batches, their order and, up to rounding, the gradients are those of one process. Dropout is what differs: a
process draws its own. Who started the processes is not known here; they find each other in torch's default group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process among those that train together; by default the only one.

    With `size` above 1, torch's default process group must be up. What is summed there stands on the CPU or on the
    device of this process, and the group must have a backend for either.
    """

    rank: int = 0
    """From 0. Process 0 leads: it alone logs, shows progress and writes results."""
    size: int = 1
    """How many there are."""
    sharded: bool = False
    """Weights, gradients and moments are split among the processes instead of repeated in each."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """For random numbers that differ by process, such as dropout; the leader's are those of a single process."""
        return seed + self.rank

    def part(self, count: int) -> slice:
        """Which of `count` rows are this process's: every `size`-th, so that rows sorted by length are evenly shared.

        May be none.
        """
        return slice(self.rank, count, self.size)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; the same in all of them."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def mean(self, total: float, count: float) -> float:
        """The mean of something whose sum and count in this process are given."""
        total, count = self.sums([total, count])
        return total / count

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the processes in place; one that is missing here counts as 0."""
        if self.size == 1:
            return
        parameters = list(parameters)
        # A weight that no process used stays without a gradient, as with a single process.
        used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        dist.all_reduce(used)
        chosen = [parameter for parameter, count in zip(parameters, used.tolist(), strict=True) if count]
        if not chosen:
            return
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in chosen]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, part in zip(chosen, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def with_others(self, own: Tensor, count: int) -> Tensor:
        """Rows [count, ...] of all processes in their order; gradients flow back to this one's `own`."""
        if self.size == 1:
            return own
        whole = own.new_zeros(count, *own.shape[1:])
        whole[self.part(count)] = own.detach()
        # What is not this process's own is 0.
        dist.all_reduce(whole)
        whole[self.part(count)] = own
        return whole

    def interleaved(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all processes, of which every `size`-th is this one's; no gradient flows back."""
        if self.size == 1:
            return list(own)
        parts: list[list[Tensor]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, [tensor.detach().cpu() for tensor in own])
        everyones = [parts[number % self.size][number // self.size] for number in range(sum(map(len, parts)))]
        return [tensor.to(own[0].device) for tensor in everyones] if own else everyones

    def told(self, value: T) -> T:
        """The leader's value, in all processes."""
        if self.size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder)
        return holder[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()
"""A single process."""
