"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere. stdout stays clean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)

_PLAIN_INTERVAL_S = 15.0


@contextmanager
def progress_bar(description: str, total: int, least: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield `advance(steps, note)`; `note` is shown beside the bar (a loss, a metric). A total below `least` is too
    short to be shown."""
    if total < least:
        yield lambda steps, note: None
        return
    if console.is_terminal:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=False) as progress:
            task = progress.add_task(description, total=total, note="")

            def advance_bar(steps: int, note: str = "") -> None:
                progress.update(task, advance=steps, note=note)

            yield advance_bar
        return

    done = 0
    started = last = time.monotonic()

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S or done >= total:
            last = now
            console.print(f"{description}: {done}/{total} in {now - started:.0f} s {note}".rstrip(), highlight=False)

    yield advance
