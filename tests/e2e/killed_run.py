"""Runs the program `recsys` and kills it (SIGKILL: nothing is cleaned up) when a function is called for the n-th time.

python killed_run.py recsys.data.split:Split.save 1 run config.yaml
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def arm(target: str, fatal_call: int) -> None:
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    _, target, fatal_call, *arguments = sys.argv
    arm(target, int(fatal_call))
    sys.argv = ["recsys", *arguments]
    from recsys.cli.main import main

    main()
