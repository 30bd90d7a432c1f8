"""Facts of the residual quantizer that hold whatever trains around it."""

from __future__ import annotations

import pytest
import torch

from recsys.tokenizer.config import CodebookKind, Estimator
from recsys.tokenizer.quantizer import ResidualQuantizer

KINDS: list[CodebookKind] = ["ema", "gradient", "simvq"]


def latents(rows: int = 64, dim: int = 4) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))


def quantizer(kind: CodebookKind = "gradient", *, levels: int = 3, size: int = 8, **settings: object):
    torch.manual_seed(0)
    made = ResidualQuantizer(dim=4, levels=levels, codebook_size=size, kind=kind, **settings)
    made.initialise(latents(), seed=0)
    return made


def residuals(made: ResidualQuantizer, latent: torch.Tensor) -> list[torch.Tensor]:
    """What enters level 1, what leaves it, ..., what leaves the last, by nearest codewords."""
    found = [latent.detach()]
    for level in range(made.num_levels):
        book = made.codebook(level).detach().clone()
        found.append(found[-1] - book[torch.cdist(found[-1], book).argmin(dim=1)])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_passes_straight_through_once_whatever_the_number_of_levels(kind: CodebookKind) -> None:
    latent = latents().requires_grad_()
    quantized = quantizer(kind)(latent)
    upstream = torch.randn(64, 4)
    (gradient,) = torch.autograd.grad(quantized.vector, latent, upstream)
    # A step per level would give three times it.
    torch.testing.assert_close(gradient, upstream)
    torch.testing.assert_close(quantized.vector, quantized.levels.sum(dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_commitment_pulls_the_latent_from_every_level(kind: CodebookKind) -> None:
    made = quantizer(kind, commitment_weight=0.25)
    latent = latents().requires_grad_()
    expected = sum(0.25 * 2 * residual / 64 for residual in residuals(made, latent)[1:])
    (gradient,) = torch.autograd.grad(made(latent).loss, latent)
    torch.testing.assert_close(gradient, expected)


def test_codebook_term_pulls_each_codeword_to_its_residuals() -> None:
    made = quantizer("gradient", levels=2, commitment_weight=0.25)
    latent = latents().requires_grad_()
    quantized = made(latent)
    entering = residuals(made, latent)
    quantized.loss.backward()
    expected = torch.zeros_like(made.codewords)
    for level in range(2):
        chosen = made.codewords[level].detach()[quantized.codes[:, level]]
        pull = 2 * (chosen - entering[level]) / 64
        expected[level].index_add_(0, quantized.codes[:, level], pull)
    torch.testing.assert_close(made.codewords.grad, expected)


def test_moving_averages_need_no_gradient() -> None:
    assert list(quantizer("ema").parameters()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_changes_nothing_and_takes_the_nearest_codes(kind: CodebookKind) -> None:
    made = quantizer(kind).eval()
    before = [made.codebook(level).detach().clone() for level in range(3)]
    quantized = made(latents())
    for level, residual in enumerate(residuals(made, latents())[:-1]):
        assert torch.equal(made.codebook(level), before[level])
        assert torch.equal(quantized.codes[:, level], torch.cdist(residual, before[level]).argmin(dim=1))


def test_rotation_scales_the_gradient_by_the_ratio_of_norms() -> None:
    made = quantizer("gradient", estimator="rotation")
    latent = latents().requires_grad_()
    quantized = made(latent)
    total = quantized.levels.detach().sum(dim=0)
    torch.testing.assert_close(quantized.vector, total, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(64, 4)
    (gradient,) = torch.autograd.grad(quantized.vector, latent, upstream)
    ratio = total.norm(dim=1) / latent.detach().norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), ratio * upstream.norm(dim=1), rtol=1e-4, atol=1e-5)
    # The gradient keeps its angle to the vector; straight through would keep its direction.
    along = (upstream * total).sum(dim=1) / total.norm(dim=1)
    turned = (gradient * latent.detach()).sum(dim=1) / latent.detach().norm(dim=1)
    torch.testing.assert_close(turned, ratio * along, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_finite_and_bounded_on_zero_residuals(kind: CodebookKind, estimator: Estimator) -> None:
    made = quantizer(kind, estimator=estimator)
    latent = torch.cat([torch.zeros(2, 4), 1e-8 * torch.ones(2, 4), made.codebook(0).detach()[:4], latents()[:8]])
    latent.requires_grad_()
    quantized = made(latent)
    loss = quantized.vector.square().sum() + quantized.loss
    (gradient,) = torch.autograd.grad(loss, latent)
    assert gradient.isfinite().all()
    assert gradient.norm(dim=1).max() < 100


def test_uniform_last_level_is_used_evenly_in_training_only() -> None:
    made = quantizer("gradient", levels=2, uniform_last_level=True)
    # All residuals of the last level are nearest to one codeword.
    with torch.no_grad():
        made.codewords[1] = 10 + torch.randn(8, 4)
        made.codewords[1, 0] = 0
    used = torch.bincount(made(latents()).codes[:, 1], minlength=8)
    assert used.min() >= 4
    assert torch.bincount(made.eval()(latents()).codes[:, 1], minlength=8).tolist() == [64] + [0] * 7


def dead_codes_after_drift(kind: CodebookKind, *, restart: bool = False) -> int:
    """Codebooks start on latents that then shrink to a fifth and turn, as those of an encoder in training may."""
    rng = torch.Generator().manual_seed(3)
    start = torch.randn(1024, 4, generator=rng)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=rng))
    torch.manual_seed(0)
    made = ResidualQuantizer(dim=4, levels=1, codebook_size=64, kind=kind)
    made.initialise(start, seed=0)
    moved = 0.2 * start @ turn
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.02)
    for step in range(200):
        batch = moved[torch.randint(0, 1024, (128,))]
        optimizer.zero_grad()
        made(batch).loss.backward()
        optimizer.step()
        if restart and step % 20 == 0:
            made.restart_dead_codes(moved, optimizer)
    made.eval()
    return 64 - len(made(moved).codes.unique())


def test_simvq_leaves_no_code_behind_where_free_codewords_do() -> None:
    assert dead_codes_after_drift("gradient") >= 8
    assert dead_codes_after_drift("simvq") == 0
    assert dead_codes_after_drift("gradient", restart=True) == 0


def test_restart_moves_dead_codes_only_onto_the_worst_residuals_and_forgets_their_moments() -> None:
    made = quantizer("gradient", levels=1)
    points = latents(16)
    points[3] = 50.0
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    made(points).loss.backward()
    optimizer.step()
    with torch.no_grad():
        made.codewords[0, 5] = 1000.0  # nobody's nearest
        moment = optimizer.state[made.codewords]["exp_avg"]
        moment.fill_(1.0)
        before = made.codewords.clone()
    alive = made.eval()(points).codes.unique()
    dead = torch.tensor([code for code in range(8) if code not in alive])
    assert made.restart_dead_codes(points, optimizer) == len(dead)
    assert torch.equal(made.codewords[0, alive], before[0, alive])
    assert (moment[0, alive] == 1).all()
    assert (moment[0, dead] == 0).all()
    assert (made.codewords[0, dead] - points[3]).norm(dim=1).min() < 1.0
    assert made.restart_dead_codes(points, optimizer) == 8 - len(made(points).codes.unique())


def test_restart_leaves_other_kinds_alone() -> None:
    made = quantizer("simvq")
    before = made.codebook(0).detach().clone()
    assert made.restart_dead_codes(latents(), torch.optim.AdamW(made.parameters())) == 0
    assert torch.equal(made.codebook(0), before)
