"""`recsys run`, `evaluate`, `tokenizer report` and `bench`: what is on stdout, and what mistakes say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MINIMAL = "tokenizer: {method: rkmeans}\ndata: {source: movielens}\n"
TOY_BENCHMARK = """
import subprocess
def main(arguments):
    print("chatter")
    subprocess.run(["echo", "chatter of a child"])
    return {"answer": int(arguments[1])}
"""


def recsys(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recsys", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "toy.py").write_text(TOY_BENCHMARK)
    (tmp_path / "toy.yaml").write_text(MINIMAL)
    return tmp_path


def test_bench_prints_one_json_document_and_keeps_it(checkout: Path) -> None:
    result = recsys("bench", "toy", "--json", "--number", "42", cwd=checkout)
    document = json.loads(result.stdout)
    assert document["name"] == "toy"
    assert document["metrics"] == {"answer": 42}
    assert document["environment"]["versions"]["torch"]
    assert "chatter of a child" in result.stderr
    assert json.loads((checkout / "benchmarks" / "results" / "toy.json").read_text()) == document


def test_the_help_of_a_benchmark_names_its_own_options_and_runs_nothing(checkout: Path) -> None:
    parsed = "import argparse\ndef main(arguments):\n    parser = argparse.ArgumentParser()\n"
    parsed += "    parser.add_argument('--number')\n    parser.parse_args(arguments)\n    return {}\n"
    (checkout / "benchmarks" / "toy.py").write_text(parsed)
    result = recsys("bench", "toy", "--help", cwd=checkout)
    assert result.returncode == 0
    assert "--number NUMBER" in result.stdout
    assert not (checkout / "benchmarks" / "results").exists()


def test_unknown_benchmark_lists_the_known_ones(checkout: Path) -> None:
    result = recsys("bench", "toi", cwd=checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: no benchmark 'toi'; did you mean 'toy'? there are: toy\n"


def test_print_config_is_yaml_on_stdout(checkout: Path) -> None:
    result = recsys("run", "toy.yaml", "run.seed=3", "--print-config", cwd=checkout)
    assert yaml.safe_load(result.stdout)["run"] == {"name": "toy", "dir": "runs", "seed": 3, "threads": None}
    assert not (checkout / "runs").exists()


def test_an_unknown_run_is_one_line(checkout: Path) -> None:
    for command in (("evaluate", "nope", "--json"), ("tokenizer", "report", "nope", "--json")):
        result = recsys(*command, cwd=checkout)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == "error: no run 'nope'; known under runs/: none\n"


def test_a_wrong_key_is_one_line(checkout: Path) -> None:
    result = recsys("run", "toy.yaml", "fit.epoch=3", cwd=checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: toy.yaml: unknown key 'fit.epoch'; did you mean fit.epochs?\n"


def test_demo_refuses_a_taken_port_before_it_trains(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = recsys("demo", "--port", port, cwd=tmp_path)
    assert result.returncode == 1
    assert f"port {port} cannot be used" in result.stderr
    assert not (tmp_path / "runs").exists()
