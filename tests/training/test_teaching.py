"""Teaching a language model: it learns items and words, finds items by their titles, and resumes exactly."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_lm import save_tiny_lm

from recsys.data import Catalog
from recsys.data.sequences import Sequences
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.lm.config import TaskMixConfig
from recsys.generator.lm.initial_rows import code_centroids, ground_rows, projected_rows
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.preference import PreferenceConfig, PreferenceWeighting
from recsys.generator.lm.rows import rectangle
from recsys.generator.lm.tasks import TASKS as TASK_NAMES
from recsys.generator.lm.tasks import TaskMix
from recsys.generator.lm.texts import CatalogTexts
from recsys.generator.recommender import GenerativeRecommender, build_model
from training.fit import FitConfig, fit_generator
from training.language_report import language_report
from training.objectives import TaskObjective
from training.teach import TeachConfig

NUM_ITEMS, SIZES = 24, (4, 8)
COLOURS = ("red", "green", "blue", "black")
THINGS = ("lamp", "chair", "table", "mug", "bag", "sofa")
OTHERS = {"description_to_item", "both_to_item", "item_to_description", "item_to_both", "history_to_description"}
TASKS = TaskMixConfig.model_validate({"shares": {name: {"passes": 0} for name in OTHERS}, "max_history": 8})

_LATER_IS_BETTER = itertools.count()


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"), hidden_size=32)


def shop() -> tuple[Catalog, Sequences]:
    titles = [f"{COLOURS[index % 4]} {THINGS[index // 4]}" for index in range(NUM_ITEMS)]
    catalog = Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [str(index) for index in range(NUM_ITEMS)],
                "title": titles,
                "categories": [[THINGS[index // 4]] for index in range(NUM_ITEMS)],
            }
        )
    )
    rng = np.random.default_rng(0)
    walks = [(start + np.arange(length)) % NUM_ITEMS for start, length in rng.integers(4, 8, size=(20, 2))]
    return catalog, Sequences.from_lists(walks)


def fresh(source: Path, shape: str, tuning: str = "full") -> GenerativeRecommender:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": shape, "max_history": 8, "lm": {"name": str(source), "tuning": tuning, "lora": {"rank": 4}}}
        )
    )
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, None)
    vectors = np.random.default_rng(2).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    ground_rows(model, codes, SIZES, vectors, seed=0)
    return GenerativeRecommender(config, codes, SIZES, None, model)


def teach(recommender: GenerativeRecommender, config: TeachConfig, fit: FitConfig, **options: object) -> TaskMix:
    catalog, train = shop()
    mix = TaskMix(config.tasks, catalog, train, CatalogTexts(catalog, config.tasks.texts), seed=0)
    fit_generator(
        recommender.model,
        train,
        fit,
        seed=0,
        validate=lambda: float(next(_LATER_IS_BETTER)),
        objective=lambda model: TaskObjective(model, mix, config, fit.batch_positions, fit.label_smoothing),
        body_rate=config.language_rate,
        **options,
    )
    return mix


@pytest.mark.parametrize("shape", ["flat", "nested"])
def test_items_are_found_by_history_and_by_title(tiny_lm: Path, shape: str) -> None:
    recommender = fresh(tiny_lm, shape)
    shares = {task: {"passes": int(task in ("next_item", "title_to_item", "item_to_title"))} for task in TASK_NAMES}
    tasks = TaskMixConfig.model_validate({"shares": shares, "max_history": 8})
    config = TeachConfig(tasks=tasks, line_rows=128, language_rate=1.0)
    fit = FitConfig(epochs=30, batch_positions=384, learning_rate=5e-3, validate_every=30)
    mix = teach(recommender, config, fit)
    found = recommender.recommend(Sequences.from_lists([[4, 5, 6], [6, 7]]), k=1)
    assert found.items[:, 0].tolist() == [7, 8]
    asked = recommender.search([str(title) for title in shop()[0].titles], k=3)
    hits = [index in asked.items[index] for index in range(NUM_ITEMS)]
    assert np.mean(hits) > 0.4  # by chance 1 of 8
    report = language_report(recommender, mix, 128, samples=24)
    assert report["title_to_item"]["samples"] == NUM_ITEMS
    assert 0 < report["title_to_item"]["recall@1"] <= report["title_to_item"]["recall@10"] <= 1
    assert report["item_to_title"]["nats_per_token"] < 2
    assert "next_item" not in report


def test_each_epoch_is_packed_once(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    epoch = TaskObjective.epoch

    def counted(objective: TaskObjective, number: int, random: np.random.Generator) -> object:
        packed.append(number)
        return epoch(objective, number, random)

    monkeypatch.setattr(TaskObjective, "epoch", counted)
    config = TeachConfig(tasks=TASKS, line_rows=128, steps_per_epoch=1)
    teach(fresh(tiny_lm, "flat"), config, FitConfig(epochs=3, batch_positions=256))
    assert packed == [0, 1, 2]


def test_a_fit_that_was_killed_ends_like_one_that_was_not(tiny_lm: Path, tmp_path: Path) -> None:
    config = TeachConfig(tasks=TASKS, line_rows=128, steps_per_epoch=3)

    class KilledError(Exception):
        pass

    def weights(directory: Path, kill_at: int | None) -> dict[str, torch.Tensor]:
        recommender = fresh(tiny_lm, "nested", tuning="lora")
        fit = FitConfig(epochs=3, batch_positions=256, validate_every=1)

        def log(tag: str, value: float, step: int) -> None:
            if tag == "train/loss" and step == kill_at:
                raise KilledError

        directory.mkdir(exist_ok=True)
        teach(recommender, config, fit, checkpoint_dir=directory, log=log)
        return dict(recommender.model.state_dict())

    with pytest.raises(KilledError):
        weights(tmp_path / "killed", kill_at=7)
    resumed, undisturbed = weights(tmp_path / "killed", kill_at=None), weights(tmp_path / "whole", kill_at=None)
    for name, value in undisturbed.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    # What is frozen is not kept with every checkpoint.
    (checkpoint,) = (tmp_path / "whole").glob("checkpoint-*/*.safetensors")
    with safe_open(checkpoint, "pt") as stored:
        kept = sum(stored.get_tensor(name).nbytes for name in stored.keys() if name.startswith("model."))  # noqa: SIM118
    assert kept < sum(value.nbytes for value in undisturbed.values()) / 2


def test_rows_begin_where_the_codebooks_geometry_puts_them() -> None:
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    vectors = np.random.default_rng(2).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    centroids = code_centroids(codes, SIZES, vectors)
    np.testing.assert_allclose(centroids[0][1], (vectors - vectors.mean(0))[codes[:, 0] == 1].mean(0), atol=1e-5)
    assert not centroids[0][3].any()  # no item has this code
    words = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * 0.3 + 1
    rows = projected_rows(centroids, words, seed=0)
    before = np.linalg.norm(centroids[1][:, None] - centroids[1][None], axis=-1)
    after = torch.cdist(rows[1], rows[1]).numpy()
    ratio = after[before > 0] / before[before > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    # An item's rows sum to a vector about as long as a word's.
    sums = sum(rows[level][codes[:, level]] for level in range(2)) - words.mean(0)
    lengths = (words - words.mean(0)).norm(dim=1).mean()
    assert 0.5 < float(sums.norm(dim=1).mean() / lengths) < 2


def test_targets_that_the_history_explains_count_for_more(tiny_lm: Path) -> None:
    recommender = fresh(tiny_lm, "flat")
    language = ItemLanguage(recommender.model)
    catalog, train = shop()
    mix = TaskMix(TASKS, catalog, train, CatalogTexts(catalog, TASKS.texts), seed=0)
    numbers = [*mix.epoch(0).numbers("next_item")[:4], *mix.epoch(0).numbers("title_to_item")[:2]]
    sequences = [language.writer(128).write(mix.epoch(0)[int(number)]) for number in numbers]
    found = language.target_log_probs(rectangle(sequences, [[index] for index in range(len(numbers))]))
    weighting = PreferenceWeighting(language, PreferenceConfig(threshold=0.01))
    weights = weighting.weights(found)
    alone = recommender.recommend(Sequences.from_lists([[]]), k=NUM_ITEMS)
    prior = dict(zip(alone.items[0].tolist(), alone.scores[0].tolist(), strict=True))
    without = np.array([prior[item] for item in found.item_targets.tolist()])
    strong = np.exp(found.items.detach().numpy() / 2) - np.exp(without / 2) > 0.01
    of_history = found.is_history.numpy()
    assert 0 < strong[of_history].sum() < of_history.sum() < len(of_history)
    expected = np.where(strong, 0.9, 0.1)
    expected = np.where(of_history, expected / expected[of_history].mean(), 1.0)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4)
    assert not weights.requires_grad


def test_a_batch_without_a_target_that_counts_is_no_step_into_nothing(tiny_lm: Path) -> None:
    recommender = fresh(tiny_lm, "flat")
    catalog, train = shop()
    config = TeachConfig(tasks=TASKS, line_rows=128, text_weight=0)
    mix = TaskMix(TASKS, catalog, train, CatalogTexts(catalog, TASKS.texts), seed=0)
    objective = TaskObjective(recommender.model, mix, config, 128, 0.0)
    writer = ItemLanguage(recommender.model).writer(128)
    text_only = [writer.write(mix.epoch(0)[int(mix.epoch(0).numbers("item_to_title")[0])])]
    loss = objective.loss(rectangle(text_only, [[0]]))
    assert loss.loss.item() == 0.0
    assert loss.num_items == 0


def test_a_setting_that_no_run_can_serve_is_refused() -> None:
    with pytest.raises(ValueError, match="rewriting"):
        TeachConfig.model_validate({"tasks": {"reasoning": {"rewriting": "copy"}}})


def test_a_model_is_asked_in_the_words_that_it_was_taught_with(tiny_lm: Path, tmp_path: Path) -> None:
    recommender = fresh(tiny_lm, "flat")
    catalog, train = shop()
    own = {"response": "{item}", "train": ["Got {query}?"], "held_out": "Any {query}?"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"intention_to_item": own}))
    tasks = TASKS.model_copy(update={"templates": tmp_path / "own.yaml"})
    mix = TaskMix(tasks, catalog, train, CatalogTexts(catalog, tasks.texts), seed=0)
    TaskObjective(recommender.model, mix, TeachConfig(tasks=tasks, line_rows=128), 128, 0.0)
    (tmp_path / "saved").mkdir()
    recommender.save(tmp_path / "saved")
    loaded = GenerativeRecommender.load(tmp_path / "saved", recommender.codes, SIZES, None)
    asked = loaded.complete([("Got lamp?",)], k=5)
    np.testing.assert_array_equal(loaded.search(["lamp"], k=5).items, asked.items)
