"""The whole way from histories to a ladder, with a language model of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_lm import save_tiny_lm

from recsys.data import Catalog
from recsys.data.sequences import Sequences
from recsys.errors import AssetError, ConfigError, DataError
from recsys.profile.attributes import ItemAttributes
from recsys.profile.cases import Case, CaseConfig, make_cases
from recsys.profile.profile import Profile
from recsys.profile.writers import LocalWriter
from training import profiles as training_profiles
from training.config import parse_config
from training.pipeline import run_stages
from training.profiles import Kept, ProfilesConfig, make_profiles, summary, title_judge
from training.stages import build_stages
from training.stages.profiles import load_frame

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def attributes() -> ItemAttributes:
    values = {
        "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
        "title": [f"Film {item}" for item in range(NUM_ITEMS)],
        "categories": [[("Drama", "Noir", "War")[item % 3]] for item in range(NUM_ITEMS)],
    }
    return ItemAttributes(Catalog(frame=pl.DataFrame(values)))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    random = np.random.default_rng(0)
    histories = Sequences.from_lists([random.choice(NUM_ITEMS, 14, replace=False) for _ in range(12)])
    counts = np.ones(NUM_ITEMS, dtype=np.int64)
    return make_cases(histories, counts, CaseConfig(targets=1, recent=2, negatives=3))


def config(lm: Path, **changes: object) -> ProfilesConfig:
    values = {
        "users": 4,
        "judge_model": str(lm),
        "writer": {"name": str(lm), "max_tokens": 6, "max_events": 3},
        "tuning": {"users": 6, "temperatures": [1.0, 1.3], "rank": 2, "pairs": {"min_gap": 0}},
    }
    return ProfilesConfig.model_validate(values | changes)


def test_profiles_are_written_tuned_and_compared_on_users_that_tuning_never_saw(
    attributes: ItemAttributes, cases: list[Case], tmp_path: Path
) -> None:
    lm = save_tiny_lm(tmp_path / "lm", max_positions=2048)
    settings = config(lm)

    class Watched:
        """The judge of tuning and comparison, that keeps whom it was asked about."""

        def __init__(self) -> None:
            self._judge = title_judge(str(lm), attributes)
            self.asked: list[int] = []

        def log_probs(self, case, texts):
            self.asked.append(case.user)
            return self._judge.log_probs(case, texts)

        def count_tokens(self, text: str) -> int:
            return self._judge.count_tokens(text)

    judge = Watched()
    outcome = make_profiles(settings, attributes, cases, judge, tmp_path)
    tuned_on, compared = judge.asked[:6], judge.asked[6:]
    assert compared == outcome.users
    assert not set(tuned_on) & set(outcome.users)
    assert list(outcome.report["arms"]) == ["none", "other_user", "template", "generated", "tuned"]
    tuning = outcome.report["tuning"]
    assert tuning["profiles"] + tuning["empty_profiles"] == 24
    assert outcome.report["tuning"]["pairs"] > 0
    assert set(outcome.profiles) == {"template", "generated", "tuned"}
    assert len(summary(outcome.report)) == 6
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_second_call_goes_on_from_what_the_first_was_told(
    attributes: ItemAttributes, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = save_tiny_lm(tmp_path / "lm", max_positions=2048)
    settings = config(lm, precision="bfloat16")
    kept = tmp_path / "kept"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    judge = title_judge(str(lm), attributes, "bfloat16")
    first = make_profiles(settings, attributes, cases, judge, tmp_path / "first", Kept(kept))
    lines = (kept / "answers.jsonl").read_text()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("was answered before")

    monkeypatch.setattr(LocalWriter, "write", never)
    monkeypatch.setattr(judge, "log_probs", never)
    monkeypatch.setattr(training_profiles, "tune_writer", never)
    second = make_profiles(settings, attributes, cases, judge, tmp_path / "second", Kept(kept))
    assert second.report == first.report
    assert second.profiles == first.profiles
    assert (kept / "answers.jsonl").read_text() == lines


def test_the_precision_of_earlier_runs_changes_no_settings() -> None:
    assert "precision" not in ProfilesConfig().model_dump()
    assert ProfilesConfig(precision="bfloat16").model_dump()["precision"] == "bfloat16"


def test_answers_that_failed_are_counted_and_are_no_profiles(
    attributes: ItemAttributes, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def write(self, prompts: list[str], *, temperature: float, seed: int) -> list[str]:
            return [""] * len(prompts)

        def count_tokens(self, text: str) -> int:
            return len(text.split())

    monkeypatch.setattr(training_profiles, "ChatWriter", lambda _: Silent())
    lm = save_tiny_lm(tmp_path / "lm", max_positions=2048)
    settings = config(lm, chat={"base_url": "u", "model": "m", "cache": "c"})
    tuning = make_profiles(settings, attributes, cases, title_judge(str(lm), attributes), tmp_path).report["tuning"]
    assert tuning["profiles"] + tuning["empty_profiles"] == 48
    assert tuning["empty_profiles"] >= 24
    assert tuning["profiles"] > 0


def test_too_few_users_are_refused(attributes: ItemAttributes, cases: list[Case], tmp_path: Path) -> None:
    settings = config(tmp_path, tuning={"users": 11})
    with pytest.raises(DataError, match="12 users have histories that are long enough, tuning takes 11"):
        make_profiles(settings, attributes, cases, None, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tuning": {}}, "profiles: writer: is empty, so there is nothing to tune"),
        ({"writer": {}, "chat": {"base_url": "u", "model": "m", "cache": "c"}}, "chat: its profiles are for tuning"),
        (
            {"writer": {}, "tuning": {}, "chat": {"base_url": "u", "model": "m", "cache": "c", "temperature": 1.0}},
            "chat.temperature: would do nothing",
        ),
        (
            {
                "writer": {},
                "tuning": {},
                "chat": {"base_url": "u", "model": "m", "cache": "c", "max_description_words": 9},
            },
            "chat.max_description_words: would do nothing",
        ),
        ({"judge": "generator", "cases": {"targets": 2}}, r"generator\.model\.lm"),
        ({"seed": 3}, "profiles.seed: a run has one seed"),
    ],
)
def test_impossible_sections_are_refused(section: dict[str, object], message: str) -> None:
    values = {"data": {"source": "movielens", "name": "ml-100k"}, "tokenizer": {"method": "rqvae"}}
    with pytest.raises(ConfigError, match=message):
        parse_config(values | {"profiles": section}, "test")


def test_a_generator_judges_no_item_that_it_was_fitted_on() -> None:
    values = {
        "data": {"source": "movielens", "name": "ml-100k"},
        "tokenizer": {"method": "rqvae"},
        "generator": {"model": {"lm": {}}},
    }
    section = {"judge": "generator", "cases": {"targets": 2}}
    assert parse_config(values | {"profiles": section}, "test").profiles is not None
    with pytest.raises(ConfigError, match="fitted on all but the last 2 items of a user"):
        parse_config(values | {"profiles": section | {"cases": {"targets": 3}}}, "test")


def test_errors_name_the_key_that_is_wrong(attributes: ItemAttributes, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"^profiles\.judge_model "):
        title_judge(str(tmp_path), attributes)
    with pytest.raises(AssetError, match=r"^profiles\.writer\.name "):
        LocalWriter(str(tmp_path))
    histories = Sequences.from_lists([range(14)])
    with pytest.raises(DataError, match=r"^profiles\.cases\.negatives=19: only 1 items are left"):
        make_cases(histories, np.ones(15, dtype=np.int64), CaseConfig(targets=1, recent=2))
    values = {"data": {"source": "movielens", "name": "ml-100k"}, "tokenizer": {"method": "rqvae"}}
    missing = {"wording": str(tmp_path / "missing.yaml")}
    with pytest.raises(ConfigError, match=r"^profiles\.wording: .*missing\.yaml: cannot be read"):
        build_stages(parse_config(values | {"profiles": missing}, "test"))


def test_other_weights_in_the_same_directory_are_another_model(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    values = {"data": {"source": "movielens", "name": "ml-100k"}, "tokenizer": {"method": "rqvae"}}
    section = {"judge_model": str(tmp_path), "writer": {"name": str(tmp_path)}}
    parsed = parse_config(values | {"profiles": section}, "test")
    before = next(stage for stage in build_stages(parsed) if stage.name == "profiles").settings
    (tmp_path / "weights").write_text("2")
    after = next(stage for stage in build_stages(parsed) if stage.name == "profiles").settings
    assert before["judge_model"] != after["judge_model"]
    assert before["writer"]["name"] != after["writer"]["name"]


def test_the_stage_writes_profiles_and_the_ladder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
            "title": [f"Film {item}" for item in range(NUM_ITEMS)],
            "categories": [[("Drama", "Noir", "War")[item % 3]] for item in range(NUM_ITEMS)],
        }
    )
    chosen = [random.choice(NUM_ITEMS, 14, replace=False).tolist() for _ in range(6)]
    events = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user, items_ in enumerate(chosen) for _ in items_],
            "item_id": [f"i{item}" for items_ in chosen for item in items_],
            "timestamp": list(range(6 * 14)),
        }
    )
    (tmp_path / "shop").mkdir()
    items.write_parquet(tmp_path / "shop" / "items.parquet")
    events.write_parquet(tmp_path / "shop" / "interactions.parquet")
    lm = save_tiny_lm(tmp_path / "lm", max_positions=2048)
    values = {
        "run": {"name": "toy", "dir": str(tmp_path / "runs")},
        "data": {"source": "files", "path": str(tmp_path / "shop")},
        "tokenizer": {"method": "rqvae"},
        "evaluation": {"baselines": ["popularity"]},
        "profiles": {"users": 4, "judge_model": str(lm), "cases": {"targets": 1, "recent": 2, "negatives": 3}},
    }
    config = parse_config(values, "test")
    chosen_stages = [each for each in build_stages(config) if each.name in ("data", "profiles")]
    run_stages(config.run_dir, chosen_stages)
    frame = load_frame(config.run_dir / "profiles")
    assert frame.height == 4
    assert set(frame["arm"]) == {"template"}
    first = Profile.from_json(frame["profile"][0])
    assert first.text == frame["text"][0]
    known = chosen[int(frame["user_id"][0][1:])]
    for statement in first.statements:
        for evidence in statement.evidence:
            assert evidence.item_id == f"i{known[evidence.event]}"
    report = json.loads((config.run_dir / "profiles" / "report.json").read_text())
    assert list(report["arms"]) == ["none", "other_user", "template"]
