from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recsys.encoder.graph.fusion import mean_fusion, slerp, spherical_bezier

SHARES = [0.0, 0.1, 0.37, 0.5, 0.9, 1.0]


def unit(count: int, dim: int, seed: int) -> Tensor:
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def angle(first: Tensor, second: Tensor) -> Tensor:
    """In float64: what is tested is in float32."""
    first, second = first.double(), second.double()
    return 2 * torch.atan2((first - second).norm(dim=1), (first + second).norm(dim=1))


def all_present(points: Tensor) -> Tensor:
    return torch.ones(points.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("share", SHARES)
def test_slerp_stays_on_the_sphere_and_divides_the_angle(share: float) -> None:
    first, second = unit(200, 8, 0), unit(200, 8, 1)
    mixed = slerp(first, second, torch.full((200,), share))
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(200), atol=1e-5, rtol=0)
    whole = angle(first, second)
    torch.testing.assert_close(angle(mixed, first), (1 - share) * whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(angle(mixed, first) + angle(mixed, second), whole, atol=1e-5, rtol=1e-5)


def test_weight_one_is_the_first_vector_and_zero_the_second() -> None:
    first, second = unit(50, 8, 0), unit(50, 8, 1)
    torch.testing.assert_close(slerp(first, second, torch.ones(50)), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(slerp(first, second, torch.zeros(50)), second, atol=1e-5, rtol=0)


def test_quarter_circle_by_hand() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    mixed = slerp(first, second, torch.tensor([2 / 3]))
    torch.testing.assert_close(mixed, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", ["equal", "opposite", "nearly equal", "nearly opposite", "absent"])
def test_values_and_gradients_are_finite_where_the_angle_is_not_defined(case: str, share: float) -> None:
    first = unit(20, 8, 0)
    offset = 1e-4 * unit(20, 8, 1)
    second = {
        "equal": first,
        "opposite": -first,
        "nearly equal": torch.nn.functional.normalize(first + offset, dim=1),
        "nearly opposite": torch.nn.functional.normalize(offset - first, dim=1),
        "absent": torch.zeros_like(first),
    }[case]
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    mixed = slerp(first, second, torch.full((20,), share))
    (mixed * unit(20, 8, 2)).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert torch.isfinite(mixed).all()
    assert torch.isfinite(first.grad).all()
    assert torch.isfinite(second.grad).all()
    if case != "absent":
        torch.testing.assert_close(mixed.norm(dim=1), torch.ones(20), atol=1e-5, rtol=0)


def test_two_points_are_a_slerp_and_one_point_is_itself() -> None:
    points = torch.stack([unit(30, 6, 0), unit(30, 6, 1)], dim=1)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(2))
    both = spherical_bezier(points, all_present(points), weight)
    torch.testing.assert_close(both, slerp(points[:, 0], points[:, 1], weight))
    alone = spherical_bezier(points[:, :1], all_present(points[:, :1]), weight)
    torch.testing.assert_close(alone, points[:, 0], atol=0, rtol=0)


def test_three_points_follow_de_casteljau() -> None:
    points = torch.stack([unit(30, 6, seed) for seed in range(3)], dim=1)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(3))
    a, b, c = points.unbind(dim=1)
    expected = slerp(slerp(a, b, weight), slerp(b, c, weight), weight)
    curve = spherical_bezier(points, all_present(points), weight)
    torch.testing.assert_close(curve, expected)
    torch.testing.assert_close(curve.norm(dim=1), torch.ones(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(spherical_bezier(points, all_present(points), torch.ones(30)), a, atol=1e-5, rtol=0)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_point_leaves_the_curve_of_the_others(missing: int) -> None:
    points = torch.stack([unit(30, 6, seed) for seed in range(3)], dim=1)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(3))
    present = all_present(points)
    present[:, missing] = False
    points[:, missing] = 0.0
    others = [index for index in range(3) if index != missing]
    expected = slerp(points[:, others[0]], points[:, others[1]], weight)
    torch.testing.assert_close(spherical_bezier(points, present, weight), expected, atol=0, rtol=0)


@pytest.mark.parametrize("fuse", [spherical_bezier, mean_fusion])
def test_single_modality_falls_back_to_it_and_none_gives_zero(fuse: object) -> None:
    assert callable(fuse)
    points = torch.stack([unit(3, 6, 0), unit(3, 6, 1)], dim=1)
    present = torch.tensor([[True, False], [False, True], [False, False]])
    points = (points * present[:, :, None]).requires_grad_()
    fused = fuse(points, present, torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(fused[0], points[0, 0])
    torch.testing.assert_close(fused[1], points[1, 1])
    assert (fused[2] == 0).all()
    fused.sum().backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


def test_mean_is_the_normalised_weighted_sum() -> None:
    points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    fused = mean_fusion(points, all_present(points), torch.tensor([0.6]))
    torch.testing.assert_close(fused, torch.tensor([[0.6, 0.4]]) / math.hypot(0.6, 0.4))
