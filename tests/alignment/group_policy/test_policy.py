"""The generator as a policy: what it says of its proposals is what the decoder says, for both shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.alignment.group_policy import Policy, current_prompts, labelled_prompts
from recsys.alignment.group_policy.policy import sample_weights
from recsys.data import Sequences
from recsys.errors import ConfigError
from recsys.generator import GenerativeRecommender, GeneratorConfig, build_model
from recsys.generator.config import ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import Found, beam_search
from recsys.generator.gumbel import GumbelNoise

NUM_ITEMS, SIZES = 24, (4, 8)
HISTORIES = Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]])


def fresh(shape: str, num_items: int = NUM_ITEMS) -> GenerativeRecommender:
    codes = np.stack(np.unravel_index(np.arange(num_items), SIZES), axis=1).astype(np.int64)
    settings = {"shape": shape, "hidden_size": 16, "max_history": 4, "dropout": 0.3}
    config = GeneratorConfig(model=ModelConfig.model_validate(settings))
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return GenerativeRecommender(config, codes, SIZES, None, model)


def nothing_known(histories: Sequences) -> torch.Tensor:
    return torch.full((len(histories), 0), -1)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_likelihoods_are_those_of_the_decoder(shape: str) -> None:
    recommender = fresh(shape)
    policy = Policy(recommender.model)
    sampled = policy.propose(HISTORIES, 6, futures=nothing_known(HISTORIES), mask_seen=False)
    listed = recommender.recommend(HISTORIES, 6, beams=6)
    np.testing.assert_array_equal(sampled.rollouts.items.numpy(), listed.items)
    recommender.model.eval()
    found = policy.likelihoods(sampled.rollouts, with_history=True)
    torch.testing.assert_close(found.proposals.detach(), torch.from_numpy(listed.scores), atol=1e-5, rtol=1e-5)
    items, lengths = policy.padded(HISTORIES)
    torch.testing.assert_close(found.history, recommender.model.target_log_probs(items, lengths))
    found.proposals.sum().backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in recommender.model.parameters())


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_over_the_vocabulary_illegal_codes_take_their_share(shape: str) -> None:
    whole, partial = fresh(shape, num_items=4 * 8), fresh(shape)
    for recommender, equal in ((whole, True), (partial, False)):
        policy = Policy(recommender.model)
        rollouts = policy.propose(HISTORIES, 5, futures=nothing_known(HISTORIES), mask_seen=False).rollouts
        legal = policy.likelihoods(rollouts, with_history=False).proposals
        over_all = policy.likelihoods(rollouts, with_history=False, over_vocabulary=True).proposals
        assert torch.allclose(legal, over_all, atol=1e-5) == equal
        assert bool((over_all <= legal + 1e-5).all())


def test_seen_items_are_not_proposed() -> None:
    sampled = Policy(fresh("nested").model).propose(HISTORIES, 8, futures=nothing_known(HISTORIES), mask_seen=True)
    for row, history in enumerate(HISTORIES):
        assert not set(history.tolist()) & set(sampled.rollouts.items[row].tolist())


def test_groups_wider_than_the_catalogue_have_empty_places() -> None:
    sampled = Policy(fresh("nested").model).propose(HISTORIES, 40, futures=nothing_known(HISTORIES), mask_seen=False)
    assert sampled.rollouts.is_real.sum(1).tolist() == 3 * [NUM_ITEMS]
    assert sampled.weights.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert bool((sampled.weights[~sampled.rollouts.is_real] == 0).all())


@pytest.mark.parametrize("size", [2, 5])
def test_weights_of_a_sample_make_unbiased_sums(size: int) -> None:
    """E[sum of w f over the sample] is the sum of p f over all items (Kool et al. 2019, section 4.2)."""
    model = Policy(fresh("nested").model.eval()).model
    draws, history = 6000, torch.tensor([[1, 2, 3]])
    state = model.start(history, torch.tensor([3]))

    def search(batch: int, k: int, noise: GumbelNoise | None) -> Found:
        return beam_search(
            model,
            model.trie,
            state.expand(batch, -1, -1),
            batch_size=batch,
            k=k,
            beams=k,
            constraints=Constraints(),
            noise=noise,
        )

    everything = search(1, NUM_ITEMS, None)
    values = torch.randn(NUM_ITEMS, generator=torch.Generator().manual_seed(0)).double()
    expected = float(everything.scores[0].double().exp() @ values[everything.items[0]])
    drawn = search(draws, size + 1, GumbelNoise(torch.arange(draws)))
    weights = sample_weights(drawn.scores[:, :size], drawn.ranks[:, size:]).double()
    for found, truth in ((weights.sum(1), 1.0), ((weights * values[drawn.items[:, :size]]).sum(1), expected)):
        assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / draws**0.5


def test_a_sample_of_the_policy_is_weighted_by_it() -> None:
    policy = Policy(fresh("nested").model)
    many = Sequences.from_lists([[1, 2, 3]] * 3000)
    sampled = policy.propose(
        many, 4, futures=nothing_known(many), mask_seen=False, seeds=np.arange(3000, dtype=np.int64)
    )
    again = policy.propose(many, 4, futures=nothing_known(many), mask_seen=False, seeds=np.arange(3000, dtype=np.int64))
    assert torch.equal(sampled.rollouts.items, again.rollouts.items)
    everything = policy.propose(
        many.select(np.zeros(1, dtype=np.int64)), NUM_ITEMS, futures=torch.zeros(1, 0), mask_seen=False
    )
    probs = torch.zeros(NUM_ITEMS).scatter(0, everything.rollouts.items[0], everything.rollouts.scores[0].exp())
    first = torch.zeros(NUM_ITEMS).index_add(0, sampled.rollouts.items[:, 0], torch.ones(3000)) / 3000
    # The first of a sample without replacement is a sample of the policy.
    assert float((first - probs).abs().max()) < 4 * 0.5 / 3000**0.5


def test_the_any_order_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested and flat"):
        Policy(fresh("any_order").model)


def test_prompts_never_reach_behind_training() -> None:
    train = Sequences.from_lists([[1, 2, 3], [], [4], [5, 6, 7, 8]], users=[10, 11, 12, 13])
    prompts = labelled_prompts(train, min_history=2)
    assert [history.tolist() for history in prompts.histories()] == [[1, 2], [5, 6], [5, 6, 7]]
    assert prompts.futures(2).tolist() == [[3, -1], [7, 8], [8, -1]]
    assert prompts.histories().users.tolist() == [10, 13, 13]
    current = current_prompts(train)
    assert [history.tolist() for history in current.histories()] == [[1, 2, 3], [4], [5, 6, 7, 8]]
    assert bool((current.futures(3) == -1).all())
    assert len(prompts + current) == 6
    assert len(labelled_prompts(train, max_prompts=2, seed=1)) == 2
