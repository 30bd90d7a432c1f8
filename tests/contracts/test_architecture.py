"""What holds for the code as a whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("recsys", "training", "serving", "feature_store")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def run_in_fresh_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_imports_follow_the_architecture() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_nothing_is_pickled() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "joblib"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in names}, f"{path} imports {names}"


def test_help_lists_every_command_and_loads_no_model_library() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from recsys.cli.main import build_app;"
        "print(CliRunner().invoke(build_app(), ['--help']).output);"
        "heavy = {'torch', 'transformers', 'sentence_transformers'};"
        "print('loaded:', *heavy & sys.modules.keys())"
    )
    output = run_in_fresh_python(code)
    for command in ("run", "demo", "evaluate", "serve", "bench", "tokenizer", "data", "assets"):
        assert f"│ {command} " in output
    assert output.rstrip().endswith("loaded:"), "commands import heavy libraries when they run, not before"
