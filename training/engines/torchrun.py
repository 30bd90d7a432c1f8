"""Processes of one machine under torch's elastic agent, which is what the command `torchrun` runs."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from recsys.errors import ConfigError, EngineError, RecsysError
from recsys.ranks import Ranks
from training.engines.config import TorchrunEngine
from training.engines.work import TIMEOUT, answer


def run(engine: TorchrunEngine, work: Callable[[Ranks], None]) -> None:
    """See `training.engines.start`."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < engine.processes:
        raise ConfigError(
            f"engine.processes={engine.processes}, and this machine has {gpus} GPUs; set engine.processes={gpus}, or "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=engine.processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=engine.max_restarts,
    )
    try:
        with _own_signals():
            answers = elastic_launch(launch, _in_process)(work, engine.parallel == "fsdp")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise EngineError(
            f"engine torchrun: process {rank} of {engine.processes} failed {engine.max_restarts + 1} times: "
            f"{_last_line(failure.message)}; see above, or raise engine.max_restarts"
        ) from error
    except SignalException as stop:
        # The agent has taken its processes along; this one ends as it would have without an agent.
        raise SystemExit(128 + stop.sigval) from stop
    if answers[0] is not None:
        raise answers[0]


@contextmanager
def _own_signals() -> Iterator[None]:
    """The agent handles signals to take its processes along, and leaves its handlers behind."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_process(work: Callable[[Ranks], None], sharded: bool) -> RecsysError | None:
    """In each process."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # The agent keeps one store. Processes that are started again must not find in it where those before them were.
    agent = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], agent)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return answer(work, sharded=sharded)


def _last_line(message: object) -> str:
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    lines = str(text).strip().splitlines()
    return lines[-1] if lines else "no message"
