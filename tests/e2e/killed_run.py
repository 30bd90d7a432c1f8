"""Runs the program `recsys` and kills it (SIGKILL: nothing is cleaned up) before or after a function's n-th call.

python killed_run.py before recsys.data.split:Split.save 1 run config.yaml
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def arm(when: str, target: str, fatal_call: int) -> None:
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
        if calls < fatal_call:
            return original(*args, **kwargs)
        if when == "after":
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    _, when, target, fatal_call, *arguments = sys.argv
    arm(when, target, int(fatal_call))
    sys.argv = ["recsys", *arguments]
    from recsys.cli.main import main

    main()
