"""What slow or costly models answered, kept as it comes: work that broke off goes on where it was. Knows no models."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from recsys.errors import ArtifactError


class KeptAnswers:
    """Answers by the hash of their request, in a JSONL file that is only ever added to.

    Args:
        path: the file, made when there is none.
        mend: what a person is told to do about a file that cannot be read.

    Raises:
        ArtifactError: it cannot be read.
    """

    def __init__(self, path: Path, mend: str) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            for line in lines:
                self._read(line)
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}; {mend}") from error

    def get(self, key: str) -> str | None:
        """The answer to a request; None where there is none yet."""
        return self._known.get(key)

    def add(self, key: str, answer: str) -> None:
        """Keep an answer; it is in the file when this returns."""
        with self._lock:
            self._known[key] = answer
            with self._path.open("a", encoding="utf-8") as file:
                # The line break comes first: a line that a kill cut short stays a line of its own.
                file.write("\n" + json.dumps({"key": key, "answer": answer}))

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            self._known[row["key"]] = row["answer"]
        except (ValueError, KeyError, TypeError):
            pass  # empty, or cut short by a kill: asked again
