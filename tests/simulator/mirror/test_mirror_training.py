"""The whole way from a log to a judged simulator, with a language model of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from chat_server import serve_chat
from tiny_lm import save_tiny_lm
from typer.testing import CliRunner

from recsys.data import DataConfig
from recsys.errors import ConfigError, DataError
from training import mirror
from training.cli import app
from training.mirror import make_mirror
from training.mirror_report import summary
from training.mirror_world import MirrorConfig, make_world

NUM_ITEMS = 30


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(0)
    items = {
        "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
        "title": [f"Film {item}" for item in range(NUM_ITEMS)],
        "categories": [[("Drama", "Noir", "War")[item % 3]] for item in range(NUM_ITEMS)],
    }
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    chosen = [random.choice(NUM_ITEMS, 9, replace=False).tolist() for _ in range(16)]
    events = {
        "user_id": [f"u{user}" for user, row in enumerate(chosen) for _ in row],
        "item_id": [f"i{item}" for row in chosen for item in row],
        # All go on side by side, so that what one is offered was chosen by others before.
        "timestamp": [16 * place + user for user in range(16) for place in range(9)],
    }
    pl.DataFrame(events).write_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"), max_positions=2048)


def config(shop: Path, lm: Path, **changes: object) -> MirrorConfig:
    values = {
        "data": {"source": "files", "path": shop},
        "model": str(lm),
        "train_users": 8,
        "test_users": 4,
        "scenes": {"min_history": 5, "min_options": 3, "max_options": 3},
        "test_options": 3,
        "max_history": 3,
        "memory": None,
        "teacher_draws": 3,
        "student_draws": 2,
        "sft": {"rank": 2},
        "dpo": {"rank": 2, "loss": "dpo"},
        "reading": {"orders": 3, "together": 3, "chains": {"max_tokens": 4}},
    }
    return MirrorConfig.model_validate(values | changes)


def test_a_log_becomes_a_simulator_that_is_judged_on_other_users(shop: Path, lm: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    settings = config(shop, lm)
    world = make_world(settings)
    assert not {scene.user for scene in world.train} & {scene.user for scene in world.test}
    report = make_mirror(settings, tmp_path / "out")
    arms = [f"{arm} {mode}" for arm in ("base", "sft", "sft_dpo") for mode in ("direct", "reasoned")]
    assert list(report["rows"]) == [
        "random",
        "popularity",
        "neighbours",
        "choice model",
        *arms,
        "sft_dpo other history",
    ]
    assert report["rows"]["random"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert report["rows"]["random"]["log_loss"]["value"] == pytest.approx(np.log(3))
    assert report["rows"]["base direct"]["accuracy_minus_base"]["value"] == 0
    assert report["rows"]["sft direct"]["log_loss"] != report["rows"]["base direct"]["log_loss"]
    assert report["rows"]["sft_dpo direct"]["log_loss"] != report["rows"]["sft direct"]["log_loss"]
    assert len(summary(report)) == 1 + len(report["rows"])
    assert not list((tmp_path / "out").glob("*.trainer"))
    # What is there is not made again, and a cut line is.
    evidence = tmp_path / "out" / "evidence.jsonl"
    lines = evidence.read_text().splitlines()
    evidence.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])
    assert make_mirror(settings, tmp_path / "out") == json.loads((tmp_path / "out" / "report.json").read_text())
    assert evidence.read_text().splitlines() == lines
    assert report == make_mirror(settings, tmp_path / "out")
    assert "sft reasoned" not in make_mirror(config(shop, lm, modes=["direct"]), tmp_path / "out")["rows"]
    with pytest.raises(ConfigError, match="was begun with other settings; name another directory"):
        make_mirror(config(shop, lm, seed=1), tmp_path / "out")


def test_a_chat_model_can_be_the_teacher(shop: Path, lm: Path, tmp_path: Path) -> None:
    answer = "Stimulus: a film.\nKnowledge: none.\nEvaluation (logical): it fits.\nChoice: B"
    with serve_chat(lambda _: answer) as url:
        settings = config(shop, lm, chat={"base_url": url, "model": "m", "cache": str(tmp_path / "answers.jsonl")})
        world = make_world(settings)
        teacher = mirror._teacher(settings, world)
        written = teacher.write(world.train[:2], 2, seed=0)
    assert [[each.concludes for each in rationales] for rationales in written] == [[1], [1]]


def test_bad_settings_are_refused_with_the_key_that_is_wrong(shop: Path, lm: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16 users have more than 5 items, train_users and test_users take 17"):
        make_world(config(shop, lm, train_users=13))
    path = tmp_path / "mirror.yaml"
    path.write_text(f"data: {{source: files, path: {shop}}}\ntrain_users: 1\n")
    with pytest.raises(ConfigError, match=r"mirror\.yaml: train_users: Input should be greater"):
        MirrorConfig.load(path)
    result = CliRunner().invoke(app, ["mirror", str(path), str(tmp_path / "out")])
    assert result.exit_code != 0


def test_the_recipe_for_a_gpu_is_a_valid_one() -> None:
    recipe = MirrorConfig.load(Path(__file__).parents[3] / "configs" / "mirror-3b.yaml")
    assert recipe.precision == "bfloat16"
    assert recipe.data == DataConfig.model_validate({"source": "movielens", "name": "ml-1m"})
