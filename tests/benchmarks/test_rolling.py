"""`bench rolling` over toy bundles: what it measures is what has to hold. No time is judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_against_public_parts import load
from toy_bundle import write_toy_bundle


@pytest.mark.parametrize(
    ("processes", "workers"), [("2", "1"), pytest.param("3", "2", marks=pytest.mark.slow)], ids=["two", "three_of_two"]
)
def test_processes_give_way_to_another_version_and_nobody_notices(processes: str, workers: str, tmp_path: Path) -> None:
    old, new = (tmp_path / name / "bundle" for name in ("old", "new"))
    for seed, path in enumerate((old, new)):
        write_toy_bundle(path, seed=seed)
    sizes = ["--processes", processes, "--workers", workers, "--seconds", "1", "--rate", "30"]
    found = load("rolling").main(["--bundle", str(old), "--next", str(new), *sizes])
    assert found["failed"] == {}
    assert found["lost"] == 0
    assert found["events"] + found["lists_of_old"] + found["lists_of_new"] == found["requests"] > 60
    assert found["lists_of_others"] == 0
    assert min(found["lists_of_old"], found["lists_of_new"]) > 0
    assert found["all_new_at_the_end"]
