from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.data.split import Split, SplitProtocol
from recsys.errors import ArtifactError, DataError
from recsys.evaluation import (
    EvaluationConfig,
    EvaluationReport,
    SasRecConfig,
    TrainingCurve,
    build_baseline,
    evaluate,
    print_report,
    save_html,
)

CONFIG = EvaluationConfig(ks=(5, 10, 50), n_bootstrap=50, batch_size=7, seed=4)
NUM_ITEMS = 60


def make_split(num_users: int = 30) -> Split:
    sequences = [[(user + step) % 50 for step in range(3 + user % 9)] for user in range(num_users)]
    histories = Sequences.from_lists([values[:-1] for values in sequences])
    return Split(
        train=Sequences.from_lists([values[:-2] for values in sequences]),
        valid=Examples(
            histories=Sequences.from_lists([values[:-2] for values in sequences]),
            targets=np.array([values[-2] for values in sequences], dtype=np.int64),
        ),
        test=Examples(histories=histories, targets=np.array([values[-1] for values in sequences], dtype=np.int64)),
        num_items=NUM_ITEMS,
        protocol=SplitProtocol(
            kind="leave_last_out",
            tie_order="item_id",
            has_repeats=False,
            tie_share=0.125,
            num_train_interactions=sum(len(values) - 2 for values in sequences),
        ),
    )


def successor(histories: Sequences, k: int) -> IntArray:
    """Knows the answer: each user's items follow one another. Fills up with the items after it."""
    last = histories.items[histories.offsets[1:] - 1]
    return (last[:, None] + 1 + np.arange(k)) % 50 if k <= 40 else pad(successor(histories, 40), k)


def second_guess(histories: Sequences, k: int) -> IntArray:
    """Puts the right answer second, an item nobody has first."""
    lists = successor(histories, k)
    return np.concatenate([np.full((len(lists), 1), 59), lists[:, : k - 1]], axis=1)


def pad(lists: IntArray, k: int) -> IntArray:
    return np.concatenate([lists, np.full((len(lists), k - lists.shape[1]), -1)], axis=1)


def make_report() -> EvaluationReport:
    return evaluate(
        {"generator": successor, "popularity": second_guess},
        make_split(),
        CONFIG,
        seeds={"sasrec": 3},
        notes={"beams": 50},
        training_curves={
            "sasrec": TrainingCurve(
                x_label="epoch", x=[1, 2], series={"train loss": [2.0, 1.5], "valid ndcg@10": [0.1, None]}
            )
        },
        code_usage=[np.array([3, 0, 5]), [1, 1]],
    )


def test_known_answers_give_known_numbers() -> None:
    report = make_report()
    ours, theirs = report.models["generator"], report.models["popularity"]
    assert ours["recall@5"].value == ours["ndcg@10"].value == ours["mrr@10"].value == 1
    assert theirs["recall@50"].value == 1
    assert theirs["mrr@10"].value == 0.5
    assert theirs["ndcg@5"].value == pytest.approx(1 / np.log2(3))
    assert report.differences["popularity"]["ndcg@10"].low == pytest.approx(1 - 1 / np.log2(3))
    assert report.differences["popularity"]["recall@10"].value == 0


def test_metric_names_are_the_contract() -> None:
    expected = {"recall@5", "recall@10", "recall@50", "ndcg@5", "ndcg@10", "ndcg@50", "mrr@10", "coverage@10"}
    expected |= {"novelty@10", "popularity_percentile@10", "head_share@10", "gini@10"}
    for metrics in make_report().models.values():
        assert set(metrics) == expected
        assert all(interval.low <= interval.value <= interval.high for interval in metrics.values())


def test_the_protocol_says_what_was_done() -> None:
    facts = make_report().protocol.model_dump()
    assert facts["split"] == "leave_last_out"
    assert facts["subset"] == "test"
    assert facts["fitted_on"] == "train"
    assert facts["mask_seen"] is True
    assert facts["tie_order"] == "item_id"
    assert facts["num_users"] == facts["num_cases"] == 30
    assert facts["num_items"] == NUM_ITEMS
    assert facts["seeds"] == {"bootstrap": 4, "sasrec": 3}
    assert facts["notes"] == {"beams": 50}


def test_segments_add_up_to_the_whole() -> None:
    report = make_report()
    for groups in report.segments.values():
        assert sum(group.cases for group in groups.values()) == 30
        total = sum(group.cases * group.models["popularity"]["ndcg@10"].value for group in groups.values())
        assert total / 30 == pytest.approx(report.models["popularity"]["ndcg@10"].value)


def test_batching_does_not_change_the_report() -> None:
    rankers = {"popularity": build_baseline("popularity", CONFIG).fit(make_split().train, NUM_ITEMS)}
    whole = evaluate(rankers, make_split(), CONFIG.model_copy(update={"batch_size": 1000}))
    assert evaluate(rankers, make_split(), CONFIG) == whole


def test_without_a_generator_there_is_nothing_to_compare() -> None:
    assert evaluate({"popularity": successor}, make_split(), CONFIG).differences == {}


def test_validation_cases_can_be_ranked_and_the_report_says_so() -> None:
    report = evaluate({"popularity": successor}, make_split(), CONFIG, subset="valid")
    assert report.protocol.subset == "valid"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda histories, k: successor(histories, k)[:, :-1], "shape"),
        (lambda histories, k: pad(np.full((len(histories), 1), NUM_ITEMS), k), "outside"),
        (lambda histories, k: pad(np.full((len(histories), 2), 55), k), "twice"),
        (lambda histories, k: pad(histories.items[histories.offsets[:-1]][:, None], k), "own history in 7 of 7"),
    ],
)
def test_impossible_lists_are_refused_by_name(broken: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^generator .*{message}"):
        evaluate({"generator": broken}, make_split(), CONFIG)  # type: ignore[dict-item]


def test_seen_items_may_come_back_when_the_protocol_does_not_mask() -> None:
    def repeat(histories: Sequences, k: int) -> IntArray:
        return pad(histories.items[histories.offsets[:-1]][:, None], k)

    report = evaluate({"generator": repeat}, make_split(), CONFIG.model_copy(update={"mask_seen": False}))
    assert report.protocol.mask_seen is False


def test_no_cases_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="test part of the split has no cases"):
        evaluate({"generator": successor}, make_split(num_users=0), CONFIG)


def test_report_json_has_the_promised_shape_and_comes_back_equal(tmp_path: Path) -> None:
    report = make_report()
    report.save(tmp_path / "report.json")
    raw = json.loads((tmp_path / "report.json").read_text())
    assert set(raw["models"]["generator"]["recall@10"]) == {"value", "low", "high"}
    assert raw["differences"]["popularity"]["recall@10"].keys() == {"value", "low", "high"}
    assert raw["code_usage"] == [[3, 0, 5], [1, 1]]
    assert EvaluationReport.load(tmp_path / "report.json") == report


def test_a_report_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match="cannot read the evaluation report"):
        EvaluationReport.load(tmp_path / "report.json")


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_shows_numbers_intervals_and_protocol_without_cutting_them(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        print_report(make_report(), console)
    text = capture.get()
    assert "…" not in text
    for expected in ("generator", "popularity", "ndcg@10", "seen items masked", "leave_last_out", "sasrec 3", "tail"):
        assert expected in " ".join(text.split())


def test_the_page_stands_alone(tmp_path: Path) -> None:
    save_html(make_report(), tmp_path / "report.html", title="Ring <1>")
    page = (tmp_path / "report.html").read_text()
    assert "Ring &lt;1&gt;" in page
    assert "<script src=" not in page
    assert "<link" not in page
    assert page.count("plotly.js v") == 1
    for name in ("accuracy", "differences", "segments", "training-sasrec", "codes"):
        assert f'id="figure-{name}"' in page
    assert "better than popularity" in page


def test_a_report_of_baselines_alone_has_a_page_too(tmp_path: Path) -> None:
    save_html(evaluate({"item_knn": successor}, make_split(), CONFIG), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="figure-differences"' not in page
    assert 'id="figure-codes"' not in page


def test_ten_is_always_a_cut_off_and_impossible_settings_are_errors() -> None:
    assert EvaluationConfig(ks=(20, 5)).ks == (5, 10, 20)
    with pytest.raises(ValidationError, match="every cut-off must be at least 1"):
        EvaluationConfig(ks=(0,))
    with pytest.raises(ValidationError, match="multiple of num_heads=3"):
        SasRecConfig(num_heads=3)
