"""Finds and runs the scripts of `benchmarks/`, and says on what machine. What they measure is theirs.

A script has `main(arguments: list[str]) -> dict[str, Any]`, which returns its metrics.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from recsys.data import DataConfig, Dataset, Split, load_dataset, make_split
from recsys.errors import RecsysError
from recsys.files import write_json
from recsys.retrieval import load_report
from training.comparison import paired_differences
from training.config import load_config
from training.layout import FUSE, FUSION, RUNS
from training.results import read_report, stage_costs
from training.runs import packaged_config

_VERSIONS_OF = (
    "recsys",
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "polars",
    "faiss-cpu",
    "onnxruntime",
)


def bench_names() -> list[str]:
    """Benchmarks of this checkout."""
    return sorted(path.stem for path in _directory().glob("*.py"))


def run_bench(name: str, arguments: list[str]) -> tuple[dict[str, Any], Path | None]:
    """Run a benchmark and write `name`, `metrics` and `environment` to `benchmarks/results/NAME.json`.

    Returns:
        The result, and the file that holds it; None where its metrics say that it was a `smoke` run, which only shows
        that the script works.
    """
    known = bench_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecsysError(f"no benchmark {name!r}; {hint}there are: {', '.join(known)}")
    path = _directory() / f"{name}.py"
    spec = spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise RecsysError(f"benchmark {name} needs {error.name}: pip install 'recsys[dev]'") from error
    # Where this machine keeps its data is nobody else's business.
    said = [Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments]
    result = {"name": name, "arguments": said, "metrics": module.main(arguments), "environment": environment()}
    if result["metrics"].get("smoke"):
        return result, None
    target = _directory() / "results" / f"{name}.json"
    write_json(target, result)
    return result, target


COMPARED = {"beauty": "amazon14_beauty", "scientific": "amazon18_scientific"}
"""Configurations whose data sets methods are compared on, and the folders of those in a `--data-root`."""


SMALL_MOVIELENS = "ml_latest_small"
"""The folder of MovieLens latest-small in those of a `--data-root`."""


def small_movielens(root: Path | None) -> DataConfig:
    """MovieLens latest-small without its rarest items: from its folder below `root`, or fetched without a root."""
    if root is None:
        return DataConfig(source="movielens", name="ml-latest-small", min_item_interactions=5)
    return DataConfig(source="files", path=root / SMALL_MOVIELENS, min_item_interactions=5)


def data_overrides(config: str, root: Path | None) -> list[str]:
    """What makes `configs/<config>.yaml`, one of `COMPARED`, read its folder below `root`; nothing without a root."""
    return [] if root is None else [f"data.path={root / COMPARED[config]}"]


def compared_data(config: str, root: Path | None) -> tuple[Dataset, Split]:
    """The data set of `configs/<config>.yaml`, one of `COMPARED`, and its split."""
    settings = load_config(packaged_config(config), data_overrides(config, root)).data
    dataset = load_dataset(settings)
    return dataset, make_split(dataset.interactions, settings)


def over_seeds(config: str, num_seeds: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run `configs/<config>.yaml` under several seeds, and what `seeds_summary` says of the runs."""
    return seeds_summary(run_seeds(config, config, num_seeds, overrides))


def fusion_bench(config: str, arguments: Sequence[str], description: str | None) -> dict[str, Any]:
    """`over_seeds` of a configuration with a fusion, and how far the fusion is ahead.

    Args:
        config: name of the configuration and of the benchmark.
        arguments: `--seeds N` (3) and `--data-path FOLDER`, a data set in the import format.
        description: for `--help`.

    Returns:
        What `seeds_summary` says, `fused_minus`: paired differences to the generator, SASRec and the counter by metric,
        and `rankers`: of each run, how its ranker was chosen and how well calibrated it is.
    """
    parser = argparse.ArgumentParser(prog=f"recsys bench {config}", description=description)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    parser.add_argument("--data-path", type=Path, help="folder with the data set in the import format")
    options = parser.parse_args(arguments)
    overrides = [f"data.path={options.data_path}"] if options.data_path else []
    runs = run_seeds(config, config, options.seeds, overrides)
    return {
        **seeds_summary(runs),
        "fused_minus": {
            other: {
                metric: asdict(interval)
                for metric, interval in paired_differences(runs, runs, models=("fused", other)).items()
            }
            for other in ("generator", "sasrec", "skip_gram")
        },
        "rankers": [load_report(run / FUSE / FUSION) for run in runs],
    }


def run_seeds(config: str, label: str, num_seeds: int, overrides: Sequence[str] = ()) -> list[Path]:
    """Run `configs/<config>.yaml` under the seeds 0, 1, ...; each run is `runs/<label>-seed-<n>`.

    A run that was killed goes on where it was, a finished one is only read.

    Returns:
        The runs' directories.

    Raises:
        RecsysError: a run failed.
    """
    directories = []
    for seed in range(num_seeds):
        name = f"{label}-seed-{seed}"
        # A process of its own, so that one run's memory does not count for the next.
        command = [sys.executable, "-m", "recsys", "run", str(packaged_config(config)), *overrides]
        if subprocess.run(
            [*command, f"run.seed={seed}", f"run.name={name}"], stdout=sys.stderr, check=False
        ).returncode:
            raise RecsysError(f"the run {name} failed; its error is above")
        directories.append(RUNS / name)
    return directories


def seeds_summary(runs: Sequence[Path]) -> dict[str, Any]:
    """What finished runs of one configuration under several seeds say together.

    Returns:
        `models`: for each metric the mean and std (null for one seed), and each run's value with its interval; and of
        each run its `protocol`, its `differences` and, in `runs`, its seconds and peak memory.
    """
    reports = [read_report(run) for run in runs]
    return {
        "protocol": [report["protocol"] for report in reports],
        "models": {
            model: {metric: _spread([report["models"][model][metric] for report in reports]) for metric in metrics}
            for model, metrics in reports[0]["models"].items()
        },
        "differences": [report["differences"] for report in reports],
        "runs": [stage_costs(run) for run in runs],
    }


def _spread(intervals: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    values = [interval["value"] for interval in intervals]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
        "low": [interval["low"] for interval in intervals],
        "high": [interval["high"] for interval in intervals],
    }


def environment() -> dict[str, Any]:
    """The machine and the versions that a measurement depends on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _VERSIONS_OF},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "commit": _commit(),
    }


def _directory() -> Path:
    for root in (Path.cwd(), Path(__file__).parents[1]):
        if (root / "benchmarks").is_dir():
            return root / "benchmarks"
    raise RecsysError("benchmarks/ is part of a checkout, not of the installed package; run this from a checkout")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _commit() -> str | None:
    command = ["git", "-C", str(_directory().parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
