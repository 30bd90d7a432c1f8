"""A run's configuration: YAML, overrides, and what its errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.errors import ConfigError
from recsys.retrieval import FusionConfig
from training.config import RunConfig, config_yaml, load_config, stored_config
from training.stages import build_stages, encode

MINIMAL = "tokenizer: {method: rkmeans}\ndata: {source: movielens}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(MINIMAL)
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_run_is_named_after_its_file_unless_it_has_a_name(config_file: Path) -> None:
    assert load_config(config_file).run_dir == Path("runs/toy")
    assert load_config(config_file, ["run.name=other", "run.dir=elsewhere"]).run_dir == Path("elsewhere/other")


def test_a_file_whose_name_cannot_name_a_run_asks_for_a_name(config_file: Path) -> None:
    spaced = config_file.rename(config_file.with_name("my run.yaml"))
    assert error_of(spaced) == (
        f"run.name, by default the name of {spaced}: 'my run' may have letters, digits, '.', '_' and '-' only, and not "
        "begin with '.'; rename the file or set run.name="
    )
    assert load_config(spaced, ["run.name=toy"]).run.name == "toy"


def test_overrides_are_yaml_and_reach_any_depth(config_file: Path) -> None:
    config = load_config(
        config_file,
        ["generator.model.dropout=0.1", "evaluation.ks=[5, 20]", "evaluation.mask_seen=no", "fit.learning_rate=3e-4"],
    )
    assert config.generator.model.dropout == 0.1
    assert config.evaluation.ks == (5, 10, 20)
    assert config.evaluation.mask_seen is False
    assert config.fit.learning_rate == 3e-4


def test_printed_configuration_is_complete_and_reads_back(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["run.seed=7"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(config_yaml(config))
    assert yaml.safe_load(printed.read_text())["fit"]["epochs"] == config.fit.epochs
    assert load_config(printed) == config


def test_stored_configuration_follows_its_run_when_it_is_moved(config_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "here"
    moved.mkdir(parents=True)
    (moved / "config.yaml").write_text(config_yaml(load_config(config_file)))
    assert stored_config(moved).run_dir == moved


def test_one_seed_drives_every_section(config_file: Path) -> None:
    config = load_config(config_file, ["run.seed=7"])
    assert (config.tokenizer.seed, config.evaluation.seed, config.evaluation.sasrec.seed) == (7, 7, 7)
    assert "set run.seed" in error_of(config_file, "evaluation.sasrec.seed=1")


def test_a_fusion_is_off_unless_its_section_is_there(config_file: Path, tmp_path: Path) -> None:
    off = load_config(config_file)
    on = load_config(config_file, ["fusion={}", "run.seed=7"])
    assert off.fusion is None
    assert on.fusion is not None
    assert (on.fusion.depth, on.fusion.seed) == (FusionConfig().depth, 7)
    for config in (off, on):
        (tmp_path / "printed.yaml").write_text(config_yaml(config))
        assert load_config(tmp_path / "printed.yaml") == config
    assert "set run.seed" in error_of(config_file, "fusion.seed=1")
    assert "fusion.penalties" in error_of(config_file, "fusion.penalties=[]")


def test_stages_of_a_fusion_come_between_the_fit_and_the_evaluation(config_file: Path) -> None:
    configs = [load_config(config_file, [override]) for override in ("fusion=null", "fusion={}")]
    without, whole = ([stage.name for stage in build_stages(config)] for config in configs)
    assert without == ["data", "encode", "tokenize", "train", "evaluate", "bundle"]
    assert whole == ["data", "encode", "tokenize", "train", "retrieve", "fuse", "evaluate", "bundle"]


def test_pairs_are_off_unless_their_section_is_there(config_file: Path, tmp_path: Path) -> None:
    off = load_config(config_file)
    on = load_config(config_file, ["pairs.ratings={}", "pairs.beams.max_cases=50"])
    assert off.pairs is None
    assert on.pairs is not None
    assert on.pairs.ratings is not None
    assert [stage.name for stage in build_stages(on)][3:5] == ["train", "pairs"]
    (tmp_path / "printed.yaml").write_text(config_yaml(on))
    assert load_config(tmp_path / "printed.yaml") == on
    assert "at least one of beams, ratings, perturbed, clicks and novelty" in error_of(config_file, "pairs.beams=null")
    clicks = load_config(config_file, ["pairs.clicks.file=some/slates.parquet"]).pairs.clicks  # type: ignore[union-attr]
    assert clicks is not None
    assert clicks.file == Path.cwd() / "some/slates.parquet"
    assert "did you mean pairs.ratings.min_gap?" in error_of(config_file, "pairs.ratings.min_gapp=1")


def test_options_of_alignment_that_are_off_do_not_make_it_anew(config_file: Path) -> None:
    def policy(*overrides: str) -> Any:
        on = load_config(config_file, ["align.method=group_policy", *overrides])
        (found,) = (stage.settings for stage in build_stages(on) if stage.name == "align")
        return found["align"]["group_policy"]

    plain = policy()
    assert "reasoning" not in plain
    assert "weight_power" not in plain["policy"]
    powered = policy("align.group_policy.policy={advantage: expected, weight_power: 0.5}")
    assert powered["policy"]["weight_power"] == 0.5


@pytest.mark.parametrize("loss", ["{name: sdpo}", "{name: robust}"])
@pytest.mark.parametrize("negatives", ["table", "random"])
def test_soft_labels_need_a_loss_that_reads_them(config_file: Path, loss: str, negatives: str) -> None:
    def of(filters: str) -> RunConfig:
        preference = f"{{loss: {loss}, negatives: {negatives}}}"
        align = f"align={{method: preference, preference: {preference}}}"
        return load_config(config_file, [f"pairs={{beams: {{}}, filters: [{filters}]}}", align])

    assert build_stages(of("{kind: peer_review}"))
    softened = of("{kind: peer_review}, {kind: consistency}")
    if (loss, negatives) == ("{name: robust}", "table"):
        assert build_stages(softened)
        with pytest.raises(ConfigError, match=r"pairs\.filters\[0\]: consistency with average=pair .*robust has no"):
            build_stages(of("{kind: consistency, average: pair}"))
    else:
        with pytest.raises(ConfigError, match=r"pairs\.filters\[1\]: consistency .* loss of cdpo, cream, robust"):
            build_stages(softened)


def test_local_data_are_found_from_any_working_directory(config_file: Path) -> None:
    config = load_config(config_file, ["data.path=some/where"])
    assert config.data.path == Path.cwd() / "some/where"


def test_local_model_is_found_from_any_working_directory(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my-model", "all-minilm-l6-v2"):
        (tmp_path / name).mkdir()
    assert load_config(config_file, ["encoder.model=my-model"]).encoder.model == str(tmp_path / "my-model")
    # An asset's name means the asset, and what is no directory is a name of the Hub.
    for name in ("all-minilm-l6-v2", "somebody/model"):
        assert load_config(config_file, [f"encoder.model={name}"]).encoder.model == name


def test_model_counts_by_its_content_unless_it_is_an_asset(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(name: str) -> object:
        return encode.stage(load_config(config_file, [f"encoder.model={name}"])).settings

    monkeypatch.chdir(tmp_path)
    asset = settings("all-minilm-l6-v2")
    for name in ("my-model", "all-minilm-l6-v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1")
    before = settings("my-model")
    (tmp_path / "my-model" / "weights").write_bytes(b"2")
    assert settings("my-model") != before
    assert settings("all-minilm-l6-v2") == asset


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("generator.model.dropuot=1", "unknown key 'generator.model.dropuot'; did you mean generator.model.dropout?"),
        ("epochs=3", "did you mean fit.epochs or"),
        ("fit.epochs=0", "fit.epochs should be greater than or equal to 1, got 0"),
        ("fit.epochs=many", "fit.epochs should be a valid integer, unable to parse string as an integer, got 'many'"),
        (
            "generator.model.shape=flta",
            "generator.model.shape must be 'nested', 'flat' or 'any_order', got 'flta'; did you mean 'flat'?",
        ),
        (
            "tokenizer.method=rkmean",
            "tokenizer.method must be 'rqvae' or 'rkmeans' or 'mpq' or 'das', got 'rkmean'; did you mean 'rkmeans'?",
        ),
        ("tokenizer.levles=3", "unknown key 'tokenizer.levles'; did you mean tokenizer.levels?"),
        ("evaluation.baselines=[popularity, itemknn]", "evaluation.baselines[1] must be"),
        ("generator.model.num_heads=3", "generator.model: hidden_size=128 must be a multiple of num_heads=3"),
        ("data.source=amazon", "amazon-2014/Beauty"),
        ("tokenizer={levels: 3}", "tokenizer.method must be 'rqvae' or 'rkmeans' or 'mpq' or 'das', got None"),
        ("run.name=a/b", "run.name: 'a/b' may have letters, digits"),
        ("generator=3", "generator must be a section of keys and values, got 3"),
        ("run.seed.x=3", "override 'run.seed.x=3'"),
        ("run.seed", "override 'run.seed' must look like section.key=value"),
        ("run.seed=[", "is not valid YAML"),
    ],
)
def test_errors_name_the_full_key_and_what_is_allowed(config_file: Path, override: str, expected: str) -> None:
    config_file.write_text(MINIMAL + "run: {seed: 1}\n")
    assert expected in error_of(config_file, override)


def test_every_mistake_is_reported_at_once(config_file: Path) -> None:
    message = error_of(config_file, "fit.epochs=0", "nonsense=1")
    assert "fit.epochs" in message
    assert "nonsense" in message


def test_missing_section_is_named(config_file: Path) -> None:
    config_file.write_text("tokenizer: {method: rkmeans}\n")
    assert "data is required" in error_of(config_file)


def test_duplicate_key_is_an_error(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "fit: {epochs: 1, epochs: 2}\n")
    assert "'epochs' is given twice" in error_of(config_file)


def test_missing_file_suggests_a_near_one(config_file: Path) -> None:
    assert f"did you mean {config_file}?" in error_of(config_file.with_name("tyo.yaml"))


def test_yaml_merge_keys_work(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "data: {source: movielens, name: ml-100k}\ntokenizer: {method: rkmeans}\nrun: {<<: {seed: 4}, threads: 1}\n"
    )
    assert load_config(path).run.seed == 4


def test_a_config_that_is_no_text_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="as UTF-8 text"):
        load_config(path)
