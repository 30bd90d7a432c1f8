"""Runs a module of the dashboard in node, beside a page that a test makes up."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def run_module(module: Path, page: str, script: str) -> Any:
    """What `script` prints as JSON; `page` comes before it and imports `MODULE`. Skips the test without node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    code = page.replace("MODULE", json.dumps(module.as_uri())) + script
    done = subprocess.run(
        [node, "--input-type=module", "--no-warnings", "-e", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
