"""What is learned from what was written."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.simulator.mirror.distillation import DistillConfig, Evidence, entropy, lessons, uncertainty
from recsys.simulator.mirror.rationales import Rationale
from recsys.simulator.mirror.scenes import Scene


def scene(user: int = 0, options: int = 2) -> Scene:
    return Scene(user=user, history=(9,), options=tuple(range(options)), chosen=0)


def said(text: str, concludes: int | None = None) -> Rationale:
    return Rationale(text=text, concludes=concludes)


def test_uncertainties_are_in_bits_and_the_gap_is_mutual_information() -> None:
    certain_but_divided = uncertainty(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert (certain_but_divided.total, certain_but_divided.expected, certain_but_divided.gap) == (1.0, 0.0, 1.0)
    unsure_together = uncertainty(np.array([[0.5, 0.5], [0.5, 0.5]]))
    assert (unsure_together.total, unsure_together.expected, unsure_together.gap) == (1.0, 1.0, 0.0)
    assert entropy(np.array([0.25] * 4)) == pytest.approx(2.0)


def test_the_clearest_right_one_is_preferred_to_the_clearest_wrong_one_of_either_writer() -> None:
    evidence = Evidence(
        scene=scene(),
        teacher=[said("right, doubtful"), said("right, clear"), said("wrong, doubtful")],
        student=[said("wrong, clear")],
        # All but certain, so that what is drawn is known.
        chances=np.array([[1 - 1e-6, 1e-6], [1.0, 0.0], [1e-6, 1 - 1e-6], [0.0, 1.0]]),
    )
    (lesson,) = lessons([evidence], DistillConfig())
    assert lesson.chosen.text == "right, clear"
    assert lesson.rejected is not None
    assert (lesson.rejected.text, lesson.rejected_place) == ("wrong, clear", 1)


def test_scenes_that_nothing_led_to_and_words_that_contradict_the_letter_are_no_lessons() -> None:
    wrong = Evidence(scene=scene(), teacher=[said("a")], student=[], chances=np.array([[0.0, 1.0]]))
    # It argued for the other option, whatever the reader made of it.
    misread = Evidence(scene=scene(), teacher=[said("b", 1)], student=[], chances=np.array([[1.0, 0.0]]))
    silent = Evidence(scene=scene(), teacher=[], student=[said("c")], chances=np.array([[1.0, 0.0]]))
    assert lessons([wrong, misread, silent], DistillConfig()) == []


def test_without_a_wrong_one_there_is_nothing_to_reject() -> None:
    evidence = Evidence(scene=scene(), teacher=[said("a", 0)], student=[], chances=np.array([[1.0, 0.0]]))
    (lesson,) = lessons([evidence], DistillConfig())
    assert (lesson.rejected, lesson.rejected_place, lesson.gap) == (None, -1, 0.0)


def test_what_the_student_finds_hard_and_the_teacher_clear_comes_first() -> None:
    easy = Evidence(scene=scene(1), teacher=[said("a")], student=[said("b")], chances=np.array([[1.0, 0.0]] * 2))
    hard = Evidence(
        scene=scene(2), teacher=[said("a")], student=[said("b")], chances=np.array([[1.0, 0.0], [0.5, 0.5]])
    )
    for by in ("difference", "gap"):
        (lesson,) = lessons([easy, hard], DistillConfig(scenes=1, by=by))  # type: ignore[arg-type]
        assert lesson.scene.user == 2
    assert [each.scene.user for each in lessons([easy, hard], DistillConfig())] == [1, 2]
    assert len(lessons([easy, hard], DistillConfig(scenes=1, by="random"))) == 1


def test_each_number_of_options_keeps_its_share() -> None:
    evidence = [
        Evidence(scene=scene(user, size), teacher=[said("a")], student=[], chances=np.eye(1, size))
        for user, size in enumerate([2] * 8 + [3] * 4)
    ]
    kept = lessons(evidence, DistillConfig(scenes=6))
    assert [len(lesson.scene.options) for lesson in kept] == [2] * 4 + [3] * 2


def test_a_reader_that_cannot_follow_leaves_the_behaviour_to_the_writer() -> None:
    evidence = Evidence(
        scene=scene(), teacher=[said("for 0", 0), said("for 1", 1)], student=[], chances=np.array([[0.0, 1.0]] * 2)
    )
    assert lessons([evidence], DistillConfig()) == []
    (lesson,) = lessons([evidence], DistillConfig(behaviour="concluded"))
    assert lesson.rejected is not None
    assert (lesson.chosen.text, lesson.rejected.text, lesson.rejected_place) == ("for 0", "for 1", 1)
