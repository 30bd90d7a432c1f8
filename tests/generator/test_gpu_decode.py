"""Reading and searching on a GPU: the lists of the CPU, with graphs and without. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_graphs import MODELS, assert_same, histories

from recsys.data.sequences import Sequences
from recsys.generator.body import Body
from recsys.generator.config import ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.placement import place
from recsys.generator.recommender import GenerativeRecommender

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


def placed(recommender: GenerativeRecommender, precision: torch.dtype = torch.float32) -> GenerativeRecommender:
    """The same one, on the GPU."""
    place(recommender.model, DEVICE, precision)
    return recommender


def assert_near(found, expected) -> None:
    """Rounding may exchange neighbours whose scores are equal but for it, and nothing else."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    differ = found.items != expected.items
    assert differ.mean() < 0.05
    assert found.short == expected.short


@pytest.mark.parametrize(("shape", "body"), [*MODELS, ("any_order", "gpt2")])
def test_lists_are_those_of_the_cpu(make_recommender, shape: str, body: str) -> None:
    recommender, on_gpu = make_recommender(shape, body=body), placed(make_recommender(shape, body=body))
    batch = histories(3, 0, 10, 1)
    rng = np.random.default_rng(0)
    allow, deny = rng.random((4, 500)) < 0.1, [rng.integers(0, 500, size=20) for _ in range(4)]
    for held in (Constraints(), Constraints(allow=allow, deny=deny), Constraints(allow=allow[0])):
        assert_near(on_gpu.recommend(batch, 10, constraints=held), recommender.recommend(batch, 10, constraints=held))
    exact = recommender.recommend(batch, 10, beams=4, exact=True)
    assert_near(on_gpu.recommend(batch, 10, beams=4, exact=True), exact)
    for given, expected in zip(on_gpu.score(batch, deny), recommender.score(batch, deny), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-4)


def test_sessions_stay_on_the_gpu(make_recommender) -> None:
    recommender, on_gpu = make_recommender("flat"), placed(make_recommender("flat"))
    for lists in ([[1, 2, 3], [4]], [[1, 2, 3, 9], [4]]):
        batch = Sequences.from_lists(lists)
        assert_near(on_gpu.recommend(batch, 5, sessions=["a", "b"]), recommender.recommend(batch, 5))
    assert on_gpu.sessions.counts.extensions == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_graphs_give_what_the_decoder_gives(make_recommender, shape: str, body: str, precision: torch.dtype) -> None:
    on_gpu = placed(make_recommender(shape, body=body), precision)
    graphs = on_gpu.with_graphs()
    rng = np.random.default_rng(1)
    # Twice, so that what one request has left behind would show in the next.
    for turn in range(2):
        for count in (1, 3, 8):
            batch = histories(*rng.integers(0, 12, count), seed=turn)
            deny = [rng.integers(0, 500, rng.integers(0, 30)) for _ in range(count)]
            for held in (Constraints(), Constraints(allow=rng.random((count, 500)) < 0.2, deny=deny)):
                found = graphs.recommend(batch, 10, constraints=held)
                expected = on_gpu.recommend(batch, 10, constraints=held)
                if precision == torch.float32:
                    assert_near(found, expected)
                else:
                    np.testing.assert_allclose(found.scores, expected.scores, atol=0.1)
    assert graphs.graphs.counts.eager == {}
    assert graphs.graphs.counts.replayed == 24


def test_a_graph_says_the_same_again_after_others_ran(make_recommender) -> None:
    graphs = placed(make_recommender("flat")).with_graphs()
    first = graphs.recommend(histories(5, 6), 10)
    for seed, count in enumerate((1, 4, 8, 2)):
        graphs.recommend(histories(*[7] * count, seed=seed), 20)
    assert_same(graphs.recommend(histories(5, 6), 10), first)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_packed_sequences_do_not_see_each_other(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    body = Body(ModelConfig(body="llama", hidden_size=64, num_heads=1, dropout=0.0), max_positions=16).eval().to(DEVICE)
    body.precision = precision
    first, second = torch.randn(1, 5, 64, device=DEVICE), torch.randn(1, 7, 64, device=DEVICE)
    places = [torch.arange(size, device=DEVICE) for size in (5, 7)]
    packed = body(torch.cat([first, second], dim=1), torch.cat(places).unsqueeze(0))
    tolerance = 1e-4 if precision == torch.float32 else 5e-2
    torch.testing.assert_close(packed[:, :5], body(first), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(packed[:, 5:], body(second), atol=tolerance, rtol=tolerance)
