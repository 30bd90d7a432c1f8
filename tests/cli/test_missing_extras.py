"""Where an extra is not installed, whatever needs it says so in one line, and everything else works."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from recsys.cli.main import build_app
from recsys.errors import ConfigError
from recsys.extras import MODULES, require_extra

ROOT = Path(__file__).parents[2]
RUN = "tokenizer: {method: rkmeans}\ndata: {source: movielens}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a run that was begun, and one that has a bundle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(RUN)
    begun = tmp_path / "runs" / "begun"
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text(RUN + "run: {name: begun}\n")
    (tmp_path / "mirror-3b.yaml").write_text((ROOT / "configs" / "mirror-3b.yaml").read_text())
    (tmp_path / "traced.yaml").write_text("traces: {enabled: true}\n")
    write_toy_bundle(tmp_path / "runs" / "served" / "bundle")
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "rollout.py").write_text((ROOT / "benchmarks" / "rollout.py").read_text())
    return tmp_path


LM = "generator.model.lm={name: smollm2-135m-instruct, load_in: 8bit}"


@pytest.mark.parametrize(
    ("command", "extra", "absent", "said"),
    [
        (["run", "toy.yaml", "engine=ray"], "ray", "ray", "engine: ray: needs"),
        (["run", "toy.yaml", LM], "quantized", "bitsandbytes", "generator.model.lm.load_in=8bit: needs"),
        (["run", "toy.yaml", "profiles={writer: {}, tuning: {}}"], "trl", "trl", "profiles.tuning: needs"),
        (["run", "toy.yaml", "data={source: files, path: s3://shop/log}"], "s3", "s3fs", "data.path: s3://shop/log"),
        (["run", "toy.yaml", "data={source: files, path: gs://shop/log}"], "gcs", "gcsfs", "data.path: gs://shop/log"),
        (["mirror", "mirror-3b.yaml", "out"], "trl", "trl", "mirror: needs"),
        (["recommend", "served", "out", "--engine", "ray"], "ray", "ray", "--engine ray: needs"),
        (["recommend", "served", "out", "--engine", "ray", "--json"], "ray", "ray", "--engine ray: needs"),
        (["export", "begun"], "onnx", "onnxscript", "recsys export: needs"),
        (["export", "begun", "--int8", "--json"], "onnx", "onnx", "recsys export: needs"),
        (["serve", "served", "--settings", "traced.yaml"], "otel", "opentelemetry.sdk.trace", "traces.enabled: needs"),
        (["bench", "rollout"], "dev", "trl", "benchmark rollout needs trl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_says_in_one_line_which_extra_it_needs(
    command: list[str], extra: str, absent: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    result = CliRunner().invoke(build_app(), command)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith(f"error: {said}")
    assert f"pip install 'recsys[{extra}]'" in result.stderr
    assert absent in result.stderr


def test_a_run_whose_index_cuvs_builds_says_so_before_it_begins(place: Path) -> None:
    """No module is absent: Faiss is there, and is another."""
    result = CliRunner().invoke(build_app(), ["run", "toy.yaml", "fusion.index=cagra"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith("error: fusion.index: cagra: needs the extra 'cuvs'")
    assert "make install-cuvs" in result.stderr


def test_every_extra_that_something_refuses_to_work_without_is_known() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    # The extra `gpu` makes faster what works without it; of `cuvs`, Faiss itself says whether it has it.
    assert MODULES.keys() == offered.keys() - {"gpu", "cuvs", "dev"}
    # None of them is loaded to see that it is there.
    monitored = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom recsys.extras import MODULES, require_extra\n"
            "for extra in ('onnx', 'trl', 'quantized'):\n    require_extra(extra, needed_by='x')\n"
            "print(*{'onnx', 'onnxscript', 'trl', 'datasets', 'bitsandbytes', 'torch'} & sys.modules.keys())",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert monitored.stdout == "\n"


def test_all_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        require_extra("onnx", needed_by="export")
    assert str(caught.value) == (
        "export: needs the extra 'onnx' (onnx, onnxscript not found); install it with: pip install 'recsys[onnx]'"
    )
    monkeypatch.setattr("recsys.extras.MODULES", {"onnx": ("no_such_package.part.of_it",)})
    with pytest.raises(ConfigError, match=r"no_such_package\.part\.of_it not found"):
        require_extra("onnx", needed_by="export")


WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None says that there is no such module
from typer.testing import CliRunner
import typer
from recsys.cli.main import build_app
program = build_app()
def walk(command, words):
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, [*words, name])
for words in walk(typer.main.get_command(program), []):
    result = CliRunner().invoke(program, [*words, "--help"])
    assert result.exit_code == 0, (words, result.output)
    print(*words)
for root in ("recsys", "feature_store", "training", "serving"):
    package = importlib.import_module(root)
    for found in pkgutil.walk_packages(package.__path__, f"{root}."):
        if found.name != "recsys.__main__":
            importlib.import_module(found.name)
"""


def test_without_any_extra_every_module_is_loaded_and_every_command_explains_itself() -> None:
    absent = [module for modules in MODULES.values() for module in modules]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *absent],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert {"serve", "run", "recommend", "export", "events consume", "import items", "tokenizer drift"} <= set(
        found.stdout.splitlines()
    )
