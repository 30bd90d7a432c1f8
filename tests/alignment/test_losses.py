"""Losses over pairs: published values, limits in which one is another, and inputs that they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from recsys.alignment.losses import (
    LOSSES,
    LossConfig,
    LossName,
    PairLogProbs,
    loss_named,
    margin_weights,
    objective_heads_loss,
    pair_metrics,
    preference_loss,
    regret_preference,
    select_pairs,
)
from recsys.errors import ConfigError


def pairs(chosen: list[float], rejected: list[list[float]], **extra: Any) -> PairLogProbs:
    """Pairs whose policy log-probabilities are their Deltas: the reference says 0 everywhere."""
    w, losers = torch.tensor(chosen), torch.tensor(rejected)
    more = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in extra.items()}
    return PairLogProbs(
        chosen=w,
        rejected=losers,
        reference_chosen=torch.zeros_like(w),
        reference_rejected=torch.zeros_like(losers),
        **more,
    )


def value(batch: PairLogProbs, name: LossName, **settings: float) -> float:
    return preference_loss(batch, LossConfig(name=name, **settings)).item()


def random_pairs(seed: int, size: int = 6, rejected: int = 3, **extra: Any) -> PairLogProbs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return PairLogProbs(
        chosen=draw(size) - 3,
        rejected=draw(size, rejected) - 3,
        reference_chosen=draw(size) - 3,
        reference_rejected=draw(size, rejected) - 3,
        **extra,
    )


# --- published values -------------------------------------------------------------------------------------------------


def test_softmax_dpo() -> None:
    assert value(pairs([0.2], [[-0.2, 0.1, -0.5]]), "sdpo", beta=1) == pytest.approx(1.122245, abs=1e-6)
    assert value(pairs([0.2], [[-0.2]]), "sdpo", beta=1) == pytest.approx(0.513015, abs=1e-6)
    assert value(pairs([0.2], [[-0.2]]), "dpo", beta=1) == pytest.approx(0.513015, abs=1e-6)


def test_length_normalised_dpo() -> None:
    batch = pairs([1.2], [[-0.9]], chosen_length=[8], rejected_length=[[30]])
    assert value(batch, "ln_dpo", beta=2) == pytest.approx(0.529260, abs=1e-6)


def test_lipo_lambda() -> None:
    batch = pairs([0.2], [[0.5, -0.1]], chosen_grade=[1.0], rejected_grade=[[0.5, 0.0]])
    assert value(batch, "lipo", beta=1) == pytest.approx(0.501909, abs=1e-6)


def test_preference_ranking() -> None:
    batch = pairs([-0.5], [[-0.7, -1.0]], chosen_grade=[2.0], rejected_grade=[[1.0, 0.5]])
    assert value(batch, "pro") == pytest.approx(1.546658, abs=1e-6)
    # Its anchor: 0.1 * 2^2 * 0.5 more.
    assert value(batch, "pro", sft_weight=0.1) == pytest.approx(1.746658, abs=1e-6)


def test_binary_classifier_optimisation() -> None:
    assert value(pairs([0.3, 0.5], [[-0.1], [0.1]], shift=0.2), "bco", beta=1) == pytest.approx(0.599376, abs=1e-6)


def test_cream() -> None:
    batch = pairs([0.8], [[0.0]], flip_rate=[0.25])
    assert value(batch, "cream", beta=1) == pytest.approx(0.571101, abs=1e-6)


def test_regret() -> None:
    assert regret_preference(torch.tensor(0.4), torch.tensor(1.5)).item() == pytest.approx(0.750260, abs=1e-6)


# --- formulas written out ---------------------------------------------------------------------------------------------


def test_robust_and_conservative_dpo_written_out() -> None:
    batch = pairs([0.8], [[-0.3]])
    for_it, against = math.log1p(math.exp(-0.55)), math.log1p(math.exp(0.55))
    assert value(batch, "cdpo", beta=0.5, flip_rate=0.2) == pytest.approx(0.8 * for_it + 0.2 * against, abs=1e-6)
    robust = (0.8 * for_it - 0.2 * against) / 0.6
    assert value(batch, "robust", beta=0.5, flip_rate=0.2) == pytest.approx(robust, abs=1e-6)


def test_robust_dpo_of_flipped_labels_is_dpo_of_true_ones_on_average() -> None:
    right, wrong = pairs([0.8], [[-0.3]]), pairs([-0.3], [[0.8]])
    mean = 0.7 * value(right, "robust", flip_rate=0.3) + 0.3 * value(wrong, "robust", flip_rate=0.3)
    assert mean == pytest.approx(value(right, "dpo"), abs=1e-6)


def test_ipo_with_and_without_lengths() -> None:
    assert value(pairs([1.2], [[-0.9]]), "ipo", beta=0.5) == pytest.approx((2.1 - 1) ** 2, abs=1e-5)
    by_token = pairs([1.2], [[-0.9]], chosen_length=[8], rejected_length=[[30]])
    assert value(by_token, "ipo", beta=0.5) == pytest.approx((0.15 + 0.03 - 1) ** 2, abs=1e-6)


def test_kto_written_out() -> None:
    batch = pairs([0.5, 0.1], [[-0.2], [0.4]], mismatched=[0.3, -0.1], reference_mismatched=[0.0, 0.0])

    def miss(logit: float) -> float:
        return 1 - 1 / (1 + math.exp(-logit))

    good = [miss(0.5 - 0.1), miss(0.1 - 0.1)]
    bad = [miss(0.1 + 0.2), miss(0.1 - 0.4)]
    expected = (sum(good) + 1.5 * sum(bad)) / 4
    assert value(batch, "kto", beta=1, undesirable_weight=1.5) == pytest.approx(expected, abs=1e-6)


def test_kto_baseline_is_never_negative() -> None:
    drifting = pairs([0.5], [[-0.2]], mismatched=[-4.0], reference_mismatched=[0.0])
    still = pairs([0.5], [[-0.2]], mismatched=[0.0], reference_mismatched=[0.0])
    assert value(drifting, "kto") == value(still, "kto")


def test_bco_weighs_bad_answers_and_takes_the_mean_of_the_batch_without_a_shift() -> None:
    batch = pairs([0.3], [[-0.1]])
    assert value(batch, "bco", beta=1) == value(pairs([0.3], [[-0.1]], shift=0.1), "bco", beta=1)
    heavier = pairs([0.3], [[-0.1]], shift=0.1, rejected_weights=[[2.0]])
    bad = math.log1p(math.exp(-0.2))
    assert value(heavier, "bco", beta=1) - value(batch, "bco", beta=1) == pytest.approx(bad / 2, abs=1e-6)


def test_the_anchor_keeps_the_likelihood_of_the_chosen() -> None:
    batch = pairs([-2.0], [[-3.0]], chosen_length=[4], rejected_length=[[4]])
    assert value(batch, "dpo", sft_weight=0.2) - value(batch, "dpo") == pytest.approx(0.2 * 2.0 / 4, abs=1e-6)


def test_weights_and_margins_weigh_pairs() -> None:
    batch = pairs([0.2, 1.0], [[0.0], [0.0]], weights=[3.0, 1.0])
    each = [value(pairs([d], [[0.0]]), "dpo", beta=1) for d in (0.2, 1.0)]
    assert value(batch, "dpo", beta=1) == pytest.approx((3 * each[0] + each[1]) / 4, abs=1e-6)
    assert margin_weights(torch.tensor([0.0, 1.0, -5.0]), 0.5).tolist() == pytest.approx(
        [1.0, 1 + 0.5 * (1 - math.exp(-1)), 1.0]
    )
    graded = pairs([0.2, 1.0], [[0.0], [0.0]], chosen_grade=[1.0, 0.0], rejected_grade=[[0.0], [0.0]])
    weight = 1 + 0.5 * (1 - math.exp(-1))
    expected = (weight * each[0] + each[1]) / (weight + 1)
    assert value(graded, "dpo", beta=1, margin_scale=0.5) == pytest.approx(expected, abs=1e-6)


def test_objectives_have_heads_of_their_own() -> None:
    heads = [random_pairs(seed) for seed in (1, 2, 3)]
    objectives = torch.tensor([0, 2, 2, 0, 0, 2])
    config = LossConfig(name="dpo")
    expected = [preference_loss(select_pairs(heads[k], objectives == k), config).item() for k in (0, 2)]
    assert objective_heads_loss(heads, objectives, config).item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    with pytest.raises(ValueError, match=r"objectives must be in 0\.\.2"):
        objective_heads_loss(heads, objectives + 1, config)


# --- relations --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.05, 5))
def test_softmax_dpo_with_one_rejected_is_dpo(seed: int, beta: float) -> None:
    batch = random_pairs(seed, rejected=1)
    one, other = (LOSSES[name](batch, LossConfig(beta=beta)) for name in ("sdpo", "dpo"))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def ready(seed: int, rejected: int = 3) -> dict[str, Any]:
    """Everything that any loss may ask for."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "chosen_length": torch.full((6,), 4),
        "rejected_length": torch.full((6, rejected), 5),
        "chosen_grade": torch.rand(6, generator=generator) + 1,
        "rejected_grade": torch.rand(6, rejected, generator=generator),
        "flip_rate": torch.rand(6, generator=generator) * 0.4,
        "mismatched": torch.randn(6, generator=generator),
        "reference_mismatched": torch.randn(6, generator=generator),
    }


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_no_loss_and_no_gradient(name: LossName) -> None:
    plain = random_pairs(0, **ready(0))
    fields = {key: found for key, found in vars(plain).items() if isinstance(found, Tensor)}
    wide = {
        key: torch.cat([found, torch.full((6, 2), torch.nan)], dim=1) if found.shape == (6, 3) else found
        for key, found in fields.items()
    }
    wide["mask"] = torch.tensor([True] * 3 + [False] * 2).expand(6, -1)
    gradients = []
    losses = []
    for given_fields in (fields, wide):
        chosen = given_fields["chosen"].clone().requires_grad_()
        rejected = given_fields["rejected"].clone().requires_grad_()
        loss = preference_loss(
            PairLogProbs(**{**given_fields, "chosen": chosen, "rejected": rejected}), LossConfig(name=name)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        assert chosen.grad is not None
        assert rejected.grad is not None
        gradients.append((chosen.grad, rejected.grad))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1][:, :3])
    assert torch.equal(gradients[1][1][:, 3:], torch.zeros(6, 2))


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_raises_the_chosen_over_the_rejected(name: LossName) -> None:
    batch = random_pairs(1, **ready(1))
    chosen, rejected = batch.chosen.clone().requires_grad_(), batch.rejected.clone().requires_grad_()
    loss = preference_loss(
        PairLogProbs(**{**vars(batch), "chosen": chosen, "rejected": rejected}), LossConfig(name=name)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    assert rejected.grad is not None
    widening = rejected.grad.sum(1) - chosen.grad
    # Smoothed and quadratic losses have their minimum at a finite margin, beyond these pairs' margins on average.
    assert widening.mean() > 0


def test_hard_negatives_get_the_softmax_share_of_the_gradient() -> None:
    rejected = torch.tensor([[-0.2, 0.1, -0.5]], requires_grad=True)
    batch = PairLogProbs(
        chosen=torch.tensor([0.2]),
        rejected=rejected,
        reference_chosen=torch.zeros(1),
        reference_rejected=torch.zeros(1, 3),
    )
    preference_loss(batch, LossConfig(name="sdpo", beta=1)).backward()  # type: ignore[no-untyped-call]
    assert rejected.grad is not None
    shares = torch.softmax(torch.tensor([0.2, -0.2, 0.1, -0.5]), 0)[1:]
    torch.testing.assert_close(rejected.grad[0], shares)


def test_metrics_tell_margins_from_likelihoods() -> None:
    batch = pairs([-1.0, -2.0], [[-2.0, 0.0], [-3.0, 7.0]], mask=[[True, True], [True, False]])
    found = pair_metrics(batch, beta=0.5)
    assert found["chosen_logp"] == -1.5
    assert found["rejected_logp"] == -2.0
    assert found["margin"] == pytest.approx(0.5 * (0.0 + 1.0) / 2)
    assert found["accuracy"] == 0.75
    assert found["chosen_drift"] == -1.5


# --- what they refuse -------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"loss\.name must be one of 'dpo', .*'cream', got 'dopo'"):
        loss_named("dopo")
    with pytest.raises(ValidationError, match="'sdpo'"):
        LossConfig.model_validate({"name": "dopo"})


@pytest.mark.parametrize("name", ["chosen", "reference_rejected", "flip_rate", "rejected_grade"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_named(name: str, bad: float) -> None:
    fields = {**vars(random_pairs(0)), **ready(0)}
    spoilt = fields[name].clone()
    spoilt[4] = bad
    with pytest.raises(ValueError, match=rf"{name} is NaN or infinite in \d of \d+ places, first in pair 4"):
        PairLogProbs(**{**fields, name: spoilt})


def test_shapes_and_empty_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="chosen must be"):
        pairs([0.1, 0.2], [[0.1]])
    with pytest.raises(ValueError, match=r"weights must have shape \[1\], got \[2\]"):
        pairs([0.1], [[0.1]], weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="mask must be"):
        pairs([0.1], [[0.1]], mask=[[False]])
    with pytest.raises(ValueError, match="weights are all 0"):
        value(pairs([0.1], [[0.1]], weights=[0.0]), "dpo")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("ln_dpo", "chosen_length"),
        ("lipo", "chosen_grade"),
        ("pro", "chosen_grade"),
        ("kto", "mismatched"),
        ("cream", "flip_rate"),
    ],
)
def test_what_a_loss_lacks_is_named(name: LossName, missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing} is needed by {name}"):
        value(pairs([0.1], [[0.1]]), name)


def test_the_robust_loss_refuses_pairs_that_say_nothing() -> None:
    with pytest.raises(ValueError, match=r"flip_rate must be below 0\.5"):
        value(pairs([0.1], [[0.1]], flip_rate=[0.5]), "robust")
