"""The losses of DAS against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import torch

from recsys.tokenizer.das.alignment import Alignment, Contrast, info_nce
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.das.debias import BehaviourModel, ClickBatch

EYE = torch.eye(2)
NOTHING_KNOWN = torch.eye(2, dtype=torch.bool)


def log_loss(positive: float, *negatives: float) -> float:
    """-log softmax of the first logit."""
    return math.log(sum(math.exp(logit) for logit in (positive, *negatives))) - positive


def test_info_nce_is_the_mean_of_both_directions_of_a_softmax_over_cosines() -> None:
    anchors = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    positives = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    loss = info_nce(Contrast(anchors=anchors, positives=positives, known=NOTHING_KNOWN), temperature=0.5)
    half = math.sqrt(0.5) / 0.5
    forward = (log_loss(2, half) + log_loss(half, 0)) / 2
    back = (log_loss(2, 0) + log_loss(half, half)) / 2
    assert abs(loss.item() - (forward + back) / 2) < 1e-6


def test_a_known_pair_off_the_diagonal_is_no_negative() -> None:
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(Contrast(anchors=EYE, positives=EYE.flip(0), known=everything), 0.1).item() == 0
    one_way = torch.tensor([[True, True], [False, True]])
    loss = info_nce(Contrast(anchors=EYE, positives=EYE, known=one_way), 1.0)
    # Row 0 forward and row 1 backward have lost their negative.
    assert abs(loss.item() - log_loss(1, 0) / 2) < 1e-6


def test_the_frequency_correction_subtracts_the_candidates_log_probability() -> None:
    logs = torch.tensor([math.log(0.5), math.log(0.1)])
    contrast = Contrast(anchors=EYE, positives=EYE, known=NOTHING_KNOWN, positive_log_frequency=logs)
    forward = (log_loss(1 - logs[0].item(), -logs[1].item()) + log_loss(1 - logs[1].item(), -logs[0].item())) / 2
    assert abs(info_nce(contrast, 1.0).item() - (forward + log_loss(1, 0)) / 2) < 1e-6


def test_views_are_summed_and_projections_start_as_the_identity() -> None:
    alignment = Alignment(user_dim=2, item_dim=2, behaviour_dim=2, temperature=0.1)
    assert alignment.user_projection(EYE).equal(EYE)
    assert alignment.item_projection(EYE).equal(EYE)
    contrast = Contrast(anchors=EYE, positives=EYE.flip(0), known=NOTHING_KNOWN)
    one = alignment({"co_item": contrast}).item()
    assert one > 0
    assert alignment({"co_item": contrast, "co_user": contrast}).item() == 2 * one
    assert alignment({}).item() == 0


def model(**settings: object) -> BehaviourModel:
    config = DASConfig.model_validate({"behaviour_dim": 2, "click_loss": "bce", **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BehaviourModel(np.array([0.0, 1.0]), np.array([0.0, 1.0, 2.0]), config)


CLICKS = ClickBatch(
    users=torch.tensor([0, 1]),
    items=torch.tensor([0, 1]),
    known=torch.eye(2, dtype=torch.bool),
    negatives=torch.tensor([2, 1]),
    is_negative=torch.tensor([True, False]),
)


def test_both_halves_are_judged_by_clicked_and_really_unclicked_items() -> None:
    tower = model(popularity_weight=0, orthogonality_weight=0)
    expected = 0.0
    for users, items in ((tower.interest, tower.property), (tower.conformity, tower.popularity)):
        u, i = users.weight.detach().double(), items.weight.detach().double()
        clicked = [math.log1p(math.exp(-float(u[row] @ i[row]))) for row in (0, 1)]
        expected += sum(clicked) / 2 + math.log1p(math.exp(float(u[0] @ i[2])))
    rows = torch.arange(2)
    assert abs(tower(CLICKS, rows, rows).item() - expected) < 1e-5


def test_the_in_batch_softmax_leaves_out_other_clicked_items() -> None:
    tower = model(debias=False, click_loss="softmax")
    rows = torch.arange(2)
    clicks = ClickBatch(**{**vars(CLICKS), "known": torch.ones(2, 2, dtype=torch.bool)})
    assert tower(clicks, rows, rows).item() == 0
    scores = (tower.interest.weight @ tower.property.weight[:2].T).tolist()
    expected = (log_loss(scores[0][0], scores[0][1]) + log_loss(scores[1][1], scores[1][0])) / 2
    assert abs(tower(CLICKS, rows, rows).item() - expected) < 1e-6


def test_orthogonality_is_the_squared_cosine_of_the_halves() -> None:
    rows = torch.arange(2)
    without, with_term = model(popularity_weight=0, orthogonality_weight=0), model(popularity_weight=0)
    for tower in (without, with_term):
        with torch.no_grad():
            tower.conformity.weight.copy_(tower.interest.weight)  # cos^2 = 1
            tower.property.weight[:] = torch.tensor([1.0, 0.0])
            tower.popularity.weight[:] = torch.tensor([0.0, 1.0])  # cos^2 = 0
    difference = with_term(CLICKS, rows, rows) - without(CLICKS, rows, rows)
    assert abs(difference.item() - 0.1) < 1e-6
