"""The promise of the front page, on real data and real weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_ends_by_itself_says_where_the_report_lies_and_beats_simple_baselines(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recsys", "demo", "--no-serve"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = Path(result.stdout.splitlines()[-1].removeprefix("report: "))
    assert (tmp_path / page).is_file()

    models = json.loads((tmp_path / page).with_suffix(".json").read_text())["models"]
    for baseline in ("popularity", "item_knn"):
        assert models["generator"]["ndcg@10"]["value"] > models[baseline]["ndcg@10"]["value"]
