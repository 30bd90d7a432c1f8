from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from recsys.evaluation.baselines import softmax
from recsys.evaluation.baselines.softmax import linear_cross_entropy, sampled_cross_entropy


def test_blockwise_loss_and_gradients_equal_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_CHUNK_BYTES_CPU", 1)  # Blocks of the least size: 16 rows.
    torch.manual_seed(0)
    hidden = torch.randn(50, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (50,))
    expected = functional.cross_entropy(hidden @ weight.T, targets)
    expected_gradients = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients)


def test_bfloat16_products_stay_close() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(64, 16), torch.randn(100, 16), torch.randint(100, (64,))
    exact = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, torch.bfloat16), exact, rtol=1e-2, atol=0)


def test_sampled_loss_with_every_item_as_a_negative_is_the_full_loss() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 8), torch.randn(30, 8), torch.randint(30, (20,))
    full = functional.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(sampled_cross_entropy(hidden, weight, targets, torch.arange(30)), full)
