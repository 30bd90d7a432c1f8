"""Scalars of a fit: one JSON line each in `metrics.jsonl`, and the same for TensorBoard. Knows no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from torch.utils.tensorboard import SummaryWriter

_LINES = "metrics.jsonl"
_TENSORBOARD = "tensorboard"


class ScalarLog:
    """Logs scalars of a run; a fit that goes on from a checkpoint overwrites what it had logged after that checkpoint.

    Use it as a context manager and call it with (tag, value, step).
    """

    def __init__(self, run_dir: Path) -> None:
        self._lines_path = run_dir / _LINES
        self._tensorboard_dir = run_dir / _TENSORBOARD
        self._lines: IO[str] | None = None
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._writer is not None:
            self._writer.close()

    def __call__(self, tag: str, value: float, step: int) -> None:
        """Append one scalar."""
        if self._lines is None or self._writer is None:
            self._lines, self._writer = self._open(tag, step)
        self._lines.write(_line(tag, value, step))
        self._lines.flush()
        self._writer.add_scalar(tag, value, step)

    def _open(self, tag: str, step: int) -> tuple[IO[str], SummaryWriter]:
        """Keep what was logged before (tag, step) was, the first time; TensorBoard's files are rebuilt from it."""
        kept = []
        for line in self._lines_path.read_text().splitlines() if self._lines_path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:  # the process was killed within this line
                break
            if record["tag"] == tag and record["step"] >= step:
                break
            kept.append(record)
        shutil.rmtree(self._tensorboard_dir, ignore_errors=True)
        writer = SummaryWriter(str(self._tensorboard_dir))
        lines = self._lines_path.open("w")
        for record in kept:
            lines.write(_line(**record))
            writer.add_scalar(record["tag"], record["value"], record["step"])
        return lines, writer


def _line(tag: str, value: float, step: int) -> str:
    return json.dumps({"tag": tag, "value": value, "step": step}) + "\n"
