"""Shards made here: in this process, or in several beside it, each with a model of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from recsys.errors import RecsysError
from training.batch.shards import Shard


def made(make: Callable[[int], Shard], numbers: Sequence[int], workers: int) -> Iterator[Shard]:
    """Shards as they are finished.

    Raises:
        RecsysError: a process died, or what `make` raises.
    """
    if workers == 1:
        yield from map(make, numbers)
        return
    # Spawned: a forked process would have the locks of threads that it does not have.
    pool = ProcessPoolExecutor(min(workers, len(numbers)), multiprocessing.get_context("spawn"), _begin)
    try:
        for future in as_completed([pool.submit(make, number) for number in numbers]):
            yield future.result()
    except BrokenProcessPool as error:
        raise RecsysError(
            f"a process of --workers {workers} died (no memory?); start again, with fewer: finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In each process: one thread, as there are others beside it, and no life without the process that started it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()


def _end_with(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)
