"""What a process of any engine does once its process group is up."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from recsys import errors
from recsys.errors import RecsysError
from recsys.ranks import Ranks

TIMEOUT = timedelta(hours=2)
"""For a process that waits for the others. One that died is noticed at once; this is for one that hangs."""
_SAME_ERROR = timedelta(seconds=30)
"""For the others to come upon an error that is the input's fault, or to be done."""


def answer(work: Callable[[Ranks], None], *, sharded: bool) -> RecsysError | None:
    """Do the work, and wait for the others: one that leaves while they still talk to it can make them fail.

    An error that is the input's fault, of any of them, is an answer: another start would bring the same. If the others
    neither meet it nor end, they wait for this process, and it is raised here so that the engine ends them.
    """
    ranks = Ranks(rank=dist.get_rank(), size=dist.get_world_size(), sharded=sharded)
    error: RecsysError | None = None
    try:
        work(ranks)
    except RecsysError as found:
        error = found
    store, names = _get_default_store(), [f"answer/{rank}" for rank in range(ranks.size)]
    store.set(names[ranks.rank], json.dumps(None if error is None else [type(error).__name__, str(error)]))
    try:
        store.wait(names, TIMEOUT if error is None else _SAME_ERROR)
    except dist.DistError as late:
        raise error if error is not None else late from None
    answers = (json.loads(store.get(name)) for name in names)
    return next((_error_of(*found) for found in answers if found is not None), None)


def _error_of(kind: str, message: str) -> RecsysError:
    """The error that another process has met; of the base class where its own is not known to all."""
    known = getattr(errors, kind, RecsysError)
    return known(message) if isinstance(known, type) and issubclass(known, RecsysError) else RecsysError(message)
