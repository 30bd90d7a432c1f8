"""`bench gpu` where there is no GPU: it refuses, its trial run goes through every part, and nothing is recorded."""

from __future__ import annotations

import pytest
import torch
from test_against_public_parts import load

from recsys.errors import ConfigError
from training.bench import run_bench


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses_in_one_line() -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        load("gpu").main([])


def test_a_trial_run_goes_through_every_part_and_is_not_recorded() -> None:
    result, path = run_bench("gpu", ["--smoke"])
    assert path is None
    found = result["metrics"]
    assert found["smoke"] is True
    assert found["training"]["tiny"]["rows_per_s"] > 0
    assert [case["share_of_equal_places"] for case in found["decode"].values() if isinstance(case, dict)] == [1.0, 1.0]
    assert found["mask"]["level_graph_ms"] > 0
    assert found["faiss"]["flat_cpu"]["recall"] == 1.0


def test_a_part_that_fails_is_reported_and_the_others_run(monkeypatch) -> None:
    bench = load("gpu")

    def out_of_memory(options: object) -> dict[str, object]:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setitem(bench._PARTS, "mask", out_of_memory)
    found = bench.main(["--smoke", "--parts", "mask", "faiss"])
    assert found["mask"]["error"] == "RuntimeError: CUDA out of memory. Tried to allocate"
    assert "flat_cpu" in found["faiss"]
