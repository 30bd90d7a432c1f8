from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from recsys.encoder.graph.losses import alignment, bpr, calibrated_uniformity, info_nce, uniformity


def unit(count: int, dim: int, seed: int) -> Tensor:
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_uniformity_is_the_log_of_the_mean_potential_of_all_pairs() -> None:
    vectors = unit(12, 5, 0)
    potentials = [
        math.exp(-2 * float((vectors[a] - vectors[b]).square().sum())) for a, b in itertools.combinations(range(12), 2)
    ]
    assert abs(float(uniformity(vectors)) - math.log(sum(potentials) / len(potentials))) < 1e-5


def test_calibrated_uniformity_is_its_formula() -> None:
    vectors, content = unit(12, 5, 0), unit(12, 5, 1)
    similarity = (content @ content.T).clamp(0, 0.8)
    potentials = [
        math.exp(-2 * (float((vectors[a] - vectors[b]).square().sum()) - 2 + 2 * float(similarity[a, b])))
        for a, b in itertools.combinations(range(12), 2)
    ]
    loss = calibrated_uniformity(vectors, similarity)
    assert abs(float(loss) - math.log(sum(potentials) / len(potentials))) < 1e-5


def test_calibrated_uniformity_lies_between_plain_and_plain_plus_four() -> None:
    vectors, content = unit(40, 8, 0), unit(40, 8, 1)
    plain = uniformity(vectors)
    ones, zeros = torch.ones(40, 40), torch.zeros(40, 40)
    torch.testing.assert_close(calibrated_uniformity(vectors, ones), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(calibrated_uniformity(vectors, zeros), plain + 4, atol=1e-5, rtol=0)
    between = calibrated_uniformity(vectors, (content @ content.T).clamp(0, 1))
    assert plain < between < plain + 4


def test_duplicate_of_equal_content_weighs_as_any_pair_as_close_as_its_content() -> None:
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(calibrated_uniformity(twins, torch.ones(2, 2)), torch.tensor(0.0), atol=1e-5, rtol=0)
    pair = unit(2, 4, 0)
    torch.testing.assert_close(calibrated_uniformity(pair, pair @ pair.T), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_pairs_closer_than_their_content_are_pushed_hardest() -> None:
    vectors = torch.nn.functional.normalize(unit(1, 6, 0) + 0.1 * unit(4, 6, 1), dim=1)
    similarity = torch.zeros(4, 4)
    similarity[0, 1] = similarity[1, 0] = 1.0
    similarity.requires_grad_()
    calibrated_uniformity(vectors, similarity).backward()
    # The loss depends on cos - s only, so this is minus the push between the two.
    push = similarity.grad
    assert push is not None
    cosine = vectors @ vectors.T
    expected = torch.exp(4 * (cosine[2, 3] - cosine[0, 1] + 1))
    torch.testing.assert_close(push[2, 3] / push[0, 1], expected, atol=0, rtol=1e-4)
    assert expected > 20


def test_alignment_is_the_mean_squared_distance() -> None:
    users, items = unit(9, 4, 0), unit(9, 4, 1)
    expected = torch.stack([2 - 2 * (u @ i) for u, i in zip(users, items, strict=True)]).mean()
    torch.testing.assert_close(alignment(users, items), expected)


def test_info_nce_is_its_formula() -> None:
    anchors, positives = 3 * unit(6, 4, 0), 0.2 * unit(6, 4, 1)
    exponentials = ((unit(6, 4, 0) @ unit(6, 4, 1).T) / 0.3).exp()
    expected = -(exponentials.diagonal() / exponentials.sum(dim=1)).log().mean()
    torch.testing.assert_close(info_nce(anchors, positives, 0.3), expected)


def test_bpr_is_log_two_for_ties_and_falls_with_the_margin() -> None:
    tie = torch.zeros(3)
    torch.testing.assert_close(bpr(tie, tie), torch.tensor(math.log(2.0)))
    torch.testing.assert_close(bpr(tie + 2.0, tie), torch.tensor(-math.log(1 / (1 + math.exp(-2.0)))))
