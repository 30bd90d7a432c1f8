"""Keeps stdout for results: what anyone else prints there goes to stderr, so that a script can read the result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def results_only_stdout() -> Iterator[TextIO]:
    """Yield the real stdout; until the block ends, descriptor 1 is stderr, for libraries and child processes too."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def print_document(stream: TextIO, document: Any) -> None:
    """Write one JSON document."""
    stream.write(json.dumps(document, indent=2) + "\n")
    stream.flush()
