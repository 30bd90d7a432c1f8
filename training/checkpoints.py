"""What a fit stores to go on from: weights, best weights, Adam moments and the curve so far.

Written and read by torch.distributed.checkpoint as safetensors, each process its part: what two processes with split
weights stored is read by one with all of them, or by three. Knows no schedule and no loss.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recsys.errors import ArtifactError
from recsys.files import atomic_directory, write_json
from recsys.ranks import ALONE, Ranks

Curve = list[dict[str, float]]
_CURVE = "curve.json"
_MODEL, _BEST, _MOMENTS = "model.", "best.", "optimizer."


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """What a fit changes, and buffers: weights that are frozen need not be kept with every checkpoint."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value.detach() for name, value in model.state_dict().items() if name not in frozen}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load `state`, which may hold some of the model's weights only."""
    model.load_state_dict({**model.state_dict(), **state})


class Checkpoint:
    """The state after an entry of the curve.

    Each has a directory of its own, `checkpoint-<entries>`, and older ones go when it is there: a kill at any
    moment leaves the newest one whole. All processes call the same methods, at the same time.
    """

    def __init__(self, directory: Path, ranks: Ranks = ALONE) -> None:
        self.directory = directory
        self._ranks = ranks

    def save(self, model: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.AdamW, curve: Curve) -> None:
        """Write the state after the last entry of `curve`; older ones go."""
        moments = {
            f"{_MOMENTS}{index}.{name}": value
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        state = {_MODEL + name: value for name, value in learned_state(model).items()}
        state |= {_BEST + name: value for name, value in best.items()} | moments
        older = self._by_epoch()
        with self._whole(f"checkpoint-{len(curve)}") as target, self._planned_alone():
            writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
            save(state, storage_writer=writer, no_dist=self._ranks.size == 1)
            if self._ranks.leads:
                write_json(target / _CURVE, curve)
        if self._ranks.leads:
            for directory in older:
                shutil.rmtree(directory)

    def load(self, model: nn.Module, optimizer: torch.optim.AdamW) -> tuple[dict[str, Tensor], Curve] | None:
        """Restore model and optimizer from the newest state; the best weights and the curve. None: there is none.

        Raises:
            ArtifactError: an earlier version wrote it.
        """
        checkpoints = self._by_epoch()
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        reader = HuggingFaceStorageReader(str(newest))
        weights = model.state_dict()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[str, Tensor] = {}
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata), "only tensors are stored"
            if not name.startswith((_MODEL, _BEST, _MOMENTS)):
                raise ArtifactError(f"{newest} was written by an earlier version; delete it to begin the fit anew")
            if name.startswith(_MOMENTS):
                like = parameters[int(name.removeprefix(_MOMENTS).split(".")[0])]
                # Moments are split as their weights are; the count of steps is a scalar.
                state[name] = torch.zeros_like(like) if stored.size == like.shape else torch.zeros(stored.size)
            else:
                state[name] = torch.zeros_like(weights[name.split(".", 1)[1]])
        with self._planned_alone():
            load(state, storage_reader=reader, no_dist=self._ranks.size == 1)
        restore(model, _under(_MODEL, state))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(_MOMENTS, state).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        curve: Curve = json.loads((newest / _CURVE).read_text())
        return _under(_BEST, state), curve

    @contextmanager
    def _whole(self, name: str) -> Iterator[Path]:
        """A directory that all processes write to, and that takes its name when all are done."""
        with ExitStack() as leaders:
            target = None
            if self._ranks.leads:
                target = leaders.enter_context(atomic_directory(self.directory / name))
            target = self._ranks.told(target)
            assert target is not None, "the leader made it"
            yield target
            self._ranks.wait()
        # Nobody looks for it before it is there.
        self._ranks.wait()

    @contextmanager
    def _planned_alone(self) -> Iterator[None]:
        """Without torch's remark that there is no process group, where that is as it should be."""
        with warnings.catch_warnings():
            if self._ranks.size == 1:
                warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            yield

    def _by_epoch(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.directory.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
