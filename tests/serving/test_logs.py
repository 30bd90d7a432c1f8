from __future__ import annotations

import io
import logging
import sys

import pytest
import structlog

from serving.logs import configure_logging


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_traceback_on_a_terminal_shows_no_local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging()
    url = "redis://:" + "se" + "cret@host"
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        structlog.get_logger("test").exception("failed")
        logging.getLogger("test").exception("failed")
    assert terminal.getvalue().count("RuntimeError: boom") == 2
    assert url not in terminal.getvalue()
