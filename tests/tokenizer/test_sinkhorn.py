from __future__ import annotations

import torch

from recsys.tokenizer.sinkhorn import uniform_assignment


def skewed_distances(rows: int, codes: int) -> torch.Tensor:
    """A codebook of which most codes are far from all latents: plain argmin uses few."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 8, generator=generator)
    codebook = torch.randn(codes, 8, generator=generator) * torch.linspace(0.2, 3, codes)[:, None]
    return torch.cdist(latents, codebook).square()


def perplexity(codes: torch.Tensor, size: int) -> float:
    shares = torch.bincount(codes, minlength=size) / len(codes)
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def test_every_code_carries_the_same_mass() -> None:
    plan = uniform_assignment(skewed_distances(1024, 256))
    assert plan.dtype == torch.float64
    torch.testing.assert_close(plan.sum(dim=0), torch.full((256,), 4.0, dtype=torch.float64), rtol=0, atol=1e-9)


def test_equal_rows_get_equal_plans() -> None:
    distances = skewed_distances(64, 16)
    distances[[5, 40]] = distances[3].clone()
    plan = uniform_assignment(distances)
    assert torch.equal(plan[5], plan[3])
    assert torch.equal(plan[40], plan[3])


def test_assignment_uses_codes_evenly_where_the_nearest_would_not() -> None:
    distances = skewed_distances(1024, 256)
    nearest = perplexity(distances.argmin(dim=1), 256)
    uniform = perplexity(uniform_assignment(distances).argmax(dim=1), 256)
    assert uniform >= 0.85 * 256
    assert nearest < 0.5 * 256


def test_scale_of_distances_does_not_matter() -> None:
    distances = skewed_distances(32, 8).double()
    torch.testing.assert_close(uniform_assignment(1e4 * distances), uniform_assignment(distances), rtol=1e-3, atol=1e-4)


def test_equal_distances_give_the_uniform_plan() -> None:
    plan = uniform_assignment(torch.ones(6, 3))
    torch.testing.assert_close(plan, torch.full((6, 3), 1 / 3, dtype=torch.float64))


def test_input_is_left_as_it_was() -> None:
    distances = skewed_distances(16, 4).double()
    before = distances.clone()
    uniform_assignment(distances)
    assert torch.equal(distances, before)
