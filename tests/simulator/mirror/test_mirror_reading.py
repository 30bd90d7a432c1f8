"""A language model reads scenes: prefixes that are shared change nothing, and places are averaged out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny_lm import save_tiny_lm

from recsys.data import Catalog
from recsys.data.sequences import Sequences
from recsys.errors import AssetError, ConfigError, DataError
from recsys.generator.calibration import expected_calibration_error
from recsys.generator.lm.backbone import Backbone, load_causal_lm
from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.attributes import ItemAttributes
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.wording import Wording
from recsys.profile.writers import chat_prompt
from recsys.simulator.mirror.prompts import ScenePrompts, letters, order_of
from recsys.simulator.mirror.rationales import RuleWriter, TextRationales
from recsys.simulator.mirror.reader import OptionReader
from recsys.simulator.mirror.scenes import NOTHING, Scene
from recsys.simulator.mirror.scorecard import agreement, by_place, cross_calibrated, gain, score
from recsys.simulator.mirror.simulator import Calibration, MirrorSimulator, ReadingConfig, read_scenes
from recsys.simulator.mirror.wording import MirrorWording

NUM_ITEMS = 12
SCENE = Scene(user=3, history=(0, 3, 6), options=(9, 1, 2, NOTHING), chosen=0)


@pytest.fixture(scope="module")
def attributes() -> ItemAttributes:
    values = {
        "item_id": [f"i{item}" for item in range(NUM_ITEMS)],
        "title": [f"Film {item} ({1980 + item})" for item in range(NUM_ITEMS)],
        "categories": [[("Drama", "Noir", "War")[item % 3]] for item in range(NUM_ITEMS)],
    }
    return ItemAttributes(Catalog(frame=pl.DataFrame(values)))


@pytest.fixture(scope="module")
def prompts(attributes: ItemAttributes) -> ScenePrompts:
    profiler = TemplateProfiler(attributes, TemplateConfig(), Wording.load())
    return ScenePrompts(attributes, MirrorWording.load(), max_history=2, profiler=profiler)


@pytest.fixture(scope="module")
def reader(prompts: ScenePrompts, tmp_path_factory: pytest.TempPathFactory) -> OptionReader:
    model, tokenizer = load_causal_lm(str(save_tiny_lm(tmp_path_factory.mktemp("lm"), max_positions=2048)), field="lm")
    return OptionReader(Backbone(model, tokenizer), prompts)


def whole(reader: OptionReader, prompt: str, answer: str, options: int) -> np.ndarray:
    """What the model says of the letters when everything is read at once."""
    backbone = reader.backbone
    cue = reader.prompts.cue
    tokens = backbone.text_tokens(chat_prompt(backbone.text_tokenizer, prompt)) + backbone.text_tokens(answer)
    ends = [backbone.text_tokens(f"{cue} {letter}") for letter in letters(options)]
    tokens += ends[0][:-1]
    with torch.no_grad():
        hidden = backbone(backbone.text_embeddings(torch.tensor([tokens])))[0, -1]
        return backbone.text_logits(hidden)[[end[-1] for end in ends]].double().softmax(-1).numpy()


def test_a_scene_in_words(prompts: ScenePrompts) -> None:
    assert prompts.prompt(SCENE, "direct").splitlines() == [
        "About a person: Likes Drama (3 of 3).",
        "A person chose lately, oldest first:",
        "- Film 3 (Drama)",
        "- Film 6 (Drama)",
        "",
        "Now these are on offer:",
        "[A] Film 9 (Drama)",
        "[B] Film 1 (Noir)",
        "[C] Film 2 (War)",
        "[D] none of these",
        "",
        "Which one does the person take? Answer with its letter.",
    ]
    assert prompts.answer(1, "Because.") == "Because.\nChoice: B"
    assert prompts.stated("Because.\nChoice: [B]", 4) == ("Because.", 1)
    assert prompts.stated("Because.\nChoice: E", 4) == ("Because.", None)
    assert prompts.stated("Because.", 4) == ("Because.", None)


def test_orders_that_share_a_prefix_are_read_as_if_each_was_read_alone(reader: OptionReader) -> None:
    scenes = [SCENE.in_order(order_of(4, rotation)) for rotation in range(4)]
    found = reader.direct([*scenes, replace(SCENE, options=(9, 1), chosen=0)])
    assert found[-1].shape == (2,)
    for scene, chances in zip(scenes, found, strict=False):
        expected = whole(reader, reader.prompts.prompt(scene, "direct"), "", 4)
        np.testing.assert_allclose(chances, expected, atol=1e-5)


def test_decision_processes_are_weighed_as_if_each_was_read_alone(reader: OptionReader) -> None:
    texts = ["Stimulus: Drama.", "Stimulus: something else.\nKnowledge: none."]
    found = reader.weigh(SCENE, texts)
    for text, chances in zip(texts, found, strict=True):
        expected = whole(reader, reader.prompts.prompt(SCENE, "reasoned"), f"{text}\n", 4)
        np.testing.assert_allclose(chances, expected, atol=1e-4)


def test_what_is_read_after_a_decision_process_of_its_own_is_what_weighing_it_gives(reader: OptionReader) -> None:
    other = replace(SCENE, history=(1, 4), options=(2, 5), chosen=1)
    config = ReasonConfig(chains=1, max_tokens=5, temperature=1.0, top_p=1.0)
    chances, texts = reader.reasoned([[SCENE, SCENE.in_order((1, 0, 2, 3))], [other]], config, seed=0)
    assert len(chances) == len(texts) == 3
    assert all(text.startswith("Stimulus:") for text in texts)
    assert reader.reasoned([[SCENE, SCENE.in_order((1, 0, 2, 3))], [other]], config, seed=0)[1] == texts
    np.testing.assert_allclose(chances[2], reader.weigh(other, [texts[2]])[0], atol=1e-4)
    np.testing.assert_allclose(chances[0], reader.weigh(SCENE, [texts[0]])[0], atol=1e-4)


def test_over_all_rotations_the_mean_forgets_the_order(reader: OptionReader) -> None:
    config = ReadingConfig(orders=4, together=1)
    first, moved = read_scenes(reader, [SCENE, SCENE.in_order(order_of(4, 1))], "direct", config, "")
    assert first.by_order.shape == (4, 4)
    np.testing.assert_allclose(first.by_order.sum(axis=1), 1.0)
    np.testing.assert_allclose(first.chances, np.roll(moved.chances, 1), atol=1e-6)
    assert first.spread > 0
    # Every option stands at every place once.
    np.testing.assert_array_equal(np.sort(first.at, axis=0), np.tile(np.arange(4)[:, None], 4))


def test_a_letter_that_is_always_preferred_is_found_and_averaged_out() -> None:
    class Favourite:
        """Takes what stands first."""

        def direct(self, scenes):
            return [np.eye(1, len(scene.options))[0] for scene in scenes]

    reads = read_scenes(Favourite(), [SCENE] * 3, "direct", ReadingConfig(orders=4), "")  # type: ignore[arg-type]
    np.testing.assert_allclose(reads[0].chances, 0.25)
    found = by_place([SCENE] * 3, reads)
    assert found["chance"] == [1, 0, 0, 0]
    assert found["accuracy"] == [1, 0, 0, 0]
    assert found["accuracy_spread"] == 1
    assert found["spread"] == pytest.approx(np.std([1, 0, 0, 0]))


def test_slates_get_chances_and_what_is_left_is_no_choice(reader: OptionReader) -> None:
    histories = Sequences.from_lists([[0, 3], [1], [2]])
    slates = np.array([[4, 5, -1], [6, -1, -1], [-1, -1, -1]])
    config = ReadingConfig(orders=2)
    always = MirrorSimulator(reader, config).chances(histories, slates)
    np.testing.assert_allclose(always.sum(axis=1), [1, 1, 0])
    assert (always[slates < 0] == 0).all()
    assert always[1, 0] == 1
    seldom = MirrorSimulator(reader, config, Calibration(nothing=3.0), nothing=True).chances(histories, slates)
    assert (seldom.sum(axis=1)[:2] < always.sum(axis=1)[:2]).all()
    assert (seldom[:2, 0] > 0).all()
    with pytest.raises(DataError, match=r"must be \[n, S\] for 3 histories, got \[2, 3\]"):
        MirrorSimulator(reader, config).chances(histories, slates[:2])


def test_calibration_finds_the_temperature_and_the_weight_of_nothing() -> None:
    random = np.random.default_rng(0)
    truth = Calibration(temperature=2.0, nothing=1.0)
    scenes, chances = [], []
    for user in range(3000):
        row = random.dirichlet([0.5] * 4)
        chosen = int(random.choice(4, p=truth.apply(SCENE, row)))
        scenes.append(replace(SCENE, user=user, chosen=chosen))
        chances.append(row)
    found = Calibration.fit(scenes, chances)
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert found.nothing == pytest.approx(1.0, abs=0.1)
    calibrated = cross_calibrated(scenes, chances, 0)
    taken = np.concatenate([np.arange(4) == scene.chosen for scene in scenes])
    assert expected_calibration_error(np.concatenate(calibrated), taken, 10, equal_width=True) < 0.03
    assert expected_calibration_error(np.concatenate(chances), taken, 10, equal_width=True) > 0.05
    with pytest.raises(DataError, match="no scene to fit it on"):
        Calibration.fit([], [])


def test_scores_of_known_guesses() -> None:
    scenes = [replace(SCENE, user=user, chosen=0) for user in range(4)]
    right, even, wrong = np.array([0.7, 0.1, 0.1, 0.1]), np.full(4, 0.25), np.array([0.1, 0.7, 0.1, 0.1])
    found = score(scenes, [right, right, even, wrong], seed=0)
    assert found["accuracy"]["value"] == pytest.approx((1 + 1 + 0.25 + 0) / 4)
    assert found["expected_accuracy"]["value"] == pytest.approx((0.7 + 0.7 + 0.25 + 0.1) / 4)
    assert found["auc"]["value"] == pytest.approx((1 + 1 + 0.5 + 1 / 3) / 4)
    assert found["log_loss"]["value"] == pytest.approx(-np.log([0.7, 0.7, 0.25, 0.1]).mean())
    assert agreement([right, wrong], [right, right]) == 0.5
    assert gain(scenes, [right] * 4, [wrong] * 4, seed=0) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_teacher_by_rule_says_what_is_true_and_argues_for_what_fits_more_often(prompts: ScenePrompts) -> None:
    writer = RuleWriter(prompts, np.arange(NUM_ITEMS), temperature=0.2)
    written = writer.write([SCENE] * 30, 1, seed=0)
    assert sum(each[0].concludes == 0 for each in written) > 20
    (everything,) = writer.write([SCENE], 10, seed=0)
    texts = {each.concludes: each.text for each in everything}
    assert sorted(texts) == [0, 1, 2, 3]
    assert "2 of my last 2 were Drama" in texts[0]
    assert "I take Film 9, it fits best." in texts[0]
    assert "Nothing like it among my last 2." in texts[1]
    assert "None of these" in texts[3]
    assert all(text.startswith("Stimulus:") for text in texts.values())


def test_written_decision_processes_lose_their_letter_and_malformed_ones_are_counted(prompts: ScenePrompts) -> None:
    answers = iter(["Stimulus: x.\nChoice: C", "I take B.\nChoice: B", "Stimulus: y.\nChoice: none"])
    asked: list[str] = []

    class Writer:
        def write(self, texts, *, temperature, seed):
            asked.extend(texts)
            return [next(answers)]

        def count_tokens(self, text: str) -> int:
            return 0

    writer = TextRationales(Writer(), prompts)
    (written,) = writer.write([SCENE], 3, seed=0)
    assert [(each.text, each.concludes) for each in written] == [("Stimulus: x.", 2)]
    assert writer.malformed == 2
    assert "Choice:" in asked[0]


def test_a_tokenizer_that_cuts_letters_is_refused(reader: OptionReader, prompts: ScenePrompts) -> None:
    class Cutting:
        def eval(self):
            return self

        def requires_grad_(self, flag: bool):
            return self

        def text_tokens(self, text: str) -> list[int]:
            return list(text.encode("utf-16-le"))

    with pytest.raises(AssetError, match="more than one token of a letter"):
        OptionReader(Cutting(), prompts)  # type: ignore[arg-type]


def test_wording_can_be_changed_and_malformed_wording_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("answer: 'I take'\n")
    assert MirrorWording.load(path).answer == "I take"
    path.write_text("option: '{letter}'\n")
    with pytest.raises(ConfigError, match=r"words\.yaml: option: must have the placeholders \{item\}, \{letter\}"):
        MirrorWording.load(path)
    path.write_text("answer: ''\n")
    with pytest.raises(ConfigError, match="answer: must be words without placeholders"):
        MirrorWording.load(path)


def test_a_model_in_half_precision_reads_nearly_the_same(reader: OptionReader) -> None:
    half = OptionReader(copy.deepcopy(reader.backbone).bfloat16(), reader.prompts)
    scenes = [SCENE, SCENE.in_order((1, 0, 2, 3))]
    for whole_row, half_row in zip(reader.direct(scenes), half.direct(scenes), strict=True):
        np.testing.assert_allclose(half_row, whole_row, atol=0.02)
    chances, _ = half.reasoned([scenes], ReasonConfig(chains=1, max_tokens=3), seed=0)
    np.testing.assert_allclose([row.sum() for row in chances], 1.0)
