"""The any-order shape against its exact twin, and what must not depend on the order of the columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from padding import padded
from scored_catalogue import score_catalogue

from recsys.data.sequences import Sequences
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.pair_dots import pair_dots
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.generator.set_walk import SetWalk

HISTORIES = Sequences.from_lists([[3, 17, 256], [], [299], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
SIZES = (8, 8, 8, 8)


def crowded_codes(num_items: int = 300, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> np.ndarray:
    """Codes of which many agree on two or three of their columns, so that sets stay large for some steps."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.zipf(1.5, size=20000) % size for size in sizes], axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)[:num_items]].astype(np.int64)


def make(
    codes: np.ndarray, sizes: tuple[int, ...] = SIZES, shape: str = "any_order", body: str = "gpt2", **model: object
) -> GenerativeRecommender:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": shape, "body": body, "hidden_size": 16, "max_history": 10, "num_heads": 2, **model}
        )
    )
    vectors = np.random.default_rng(1).normal(size=(len(codes), 6)).astype(np.float32)
    torch.manual_seed(0)
    network = build_model(config, codes, sizes, vectors)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return GenerativeRecommender(config, codes, sizes, vectors, network)


@pytest.fixture(scope="module")
def recommender() -> GenerativeRecommender:
    return make(crowded_codes())


@pytest.mark.parametrize(
    ("sizes", "model"),
    [
        (SIZES, {}),
        (SIZES, {"body": "llama"}),
        (SIZES, {"item_residuals": False}),
        ((4, 16, 3, 9), {}),
        ((40, 12), {}),
    ],
)
def test_a_wide_beam_equals_scoring_the_whole_catalogue(sizes: tuple[int, ...], model: dict[str, object]) -> None:
    recommender = make(crowded_codes(sizes=sizes), sizes, **model)
    count = recommender.trie.num_items
    found = recommender.recommend(HISTORIES, k=count, beams=count)
    for row, history in enumerate(HISTORIES):
        exact = score_catalogue(recommender, history)
        assert sorted(found.items[row]) == list(range(count))
        np.testing.assert_allclose(found.scores[row], exact[found.items[row]], atol=1e-4)
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)


def test_no_item_is_emitted_twice_however_narrow_the_beam(recommender: GenerativeRecommender) -> None:
    for beams in (1, 3, 20):
        found = recommender.recommend(HISTORIES, k=15, beams=beams)
        for row in found.items:
            assert len(set(row[row >= 0].tolist())) == 15


def test_scores_of_a_narrow_beam_are_those_of_the_whole_catalogue(recommender: GenerativeRecommender) -> None:
    narrow = recommender.recommend(HISTORIES, k=5, beams=5)
    for row, history in enumerate(HISTORIES):
        exact = score_catalogue(recommender, history)
        np.testing.assert_allclose(narrow.scores[row], exact[narrow.items[row]], atol=1e-4)


def test_a_batch_gives_what_its_requests_give_alone(recommender: GenerativeRecommender) -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 300, size=size) for size in (0, 1, 4, 10, 25)]
    deny = [history[:3] for history in histories]
    together = recommender.recommend(
        Sequences.from_lists(histories), k=20, beams=20, constraints=Constraints(deny=deny), batch_size=4
    )
    for row, history in enumerate(histories):
        alone = recommender.recommend(
            Sequences.from_lists([history]), k=20, beams=20, constraints=Constraints(deny=deny[row : row + 1])
        )
        np.testing.assert_array_equal(together.items[row], alone.items[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-5)


def test_constraints_mask_without_changing_order_or_scores(recommender: GenerativeRecommender) -> None:
    free = recommender.recommend(HISTORIES, k=300)
    allow = np.random.default_rng(5).random((len(HISTORIES), 300)) < 0.1
    deny = [np.flatnonzero(row)[:4] for row in allow]
    held = recommender.recommend(HISTORIES, k=40, beams=300, constraints=Constraints(allow=allow, deny=deny))
    for row in range(len(HISTORIES)):
        permitted = allow[row].copy()
        permitted[deny[row]] = False
        keep = permitted[free.items[row]]
        count = int(keep.sum())
        np.testing.assert_array_equal(held.items[row][:count], free.items[row][keep])
        np.testing.assert_allclose(held.scores[row][:count], free.scores[row][keep], atol=1e-5)
        assert (held.items[row][count:] == -1).all()


def test_equal_scores_are_ordered_by_semantic_id(recommender: GenerativeRecommender) -> None:
    codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(64), (4, 4, 4)), axis=1)
    even = make(codes, (4, 4, 4))
    with torch.no_grad():
        for parameter in even.model.parameters():
            parameter.zero_()
    found = even.recommend(Sequences.from_lists([[], [5]]), k=64)
    by_sid = np.lexsort(codes.T[::-1])
    np.testing.assert_array_equal(found.items, np.stack([by_sid, by_sid]))


def permuted(recommender: GenerativeRecommender, order: list[int]) -> GenerativeRecommender:
    """The same network over the same catalogue with the columns of the codes in another order."""
    sizes = tuple(SIZES[column] for column in order)
    other = make(np.ascontiguousarray(recommender.codes[:, order]), sizes)
    tables = {"code_embeddings", "norms", "heads"}
    state = {}
    for name, value in recommender.model.state_dict().items():
        parts = name.split(".")
        for table in tables & set(parts):
            place = parts.index(table) + 1
            parts[place] = str(order.index(int(parts[place])))
        if parts[1:2] == ["codebook_embeddings"]:
            value = value[order]
        if parts[1:2] == ["token_embeddings"]:
            value = torch.cat([value.split(SIZES)[column] for column in order])
        state[".".join(parts)] = value
    other.model.load_state_dict(state)
    return other


def test_the_order_of_the_columns_leaves_every_list_as_it_is(recommender: GenerativeRecommender) -> None:
    expected = recommender.recommend(HISTORIES, k=30)
    for order in ([3, 1, 0, 2], [1, 2, 3, 0]):
        found = permuted(recommender, order).recommend(HISTORIES, k=30)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def walked_orders(recommender: GenerativeRecommender, histories: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The codebooks that a greedy search takes, int64 [B, M], and how sure it is of each code, float32 [B, M]."""
    model, trie = recommender.model, recommender.trie
    items, lengths = padded(list(histories))
    order, sure = [], []
    with torch.inference_mode():
        walk = SetWalk(trie, Constraints(), len(lengths))
        state = model.start(items, lengths)
        for level in range(trie.num_levels):
            confidence, best = walk.expand(model, state, level).flatten(1).max(-1)
            order.append(walk.codebooks.gather(1, walk.chosen.unsqueeze(1)).squeeze(1))
            sure.append(confidence.exp())
            state = model.advance(state, level, *walk.keep(level, best.unsqueeze(1)))
    return torch.stack(order, dim=1).numpy(), torch.stack(sure, dim=1).numpy()


def test_the_order_depends_on_the_history_and_its_first_step_is_surer_than_any_fixed_one(
    recommender: GenerativeRecommender,
) -> None:
    histories = Sequences.from_lists([np.random.default_rng(row).integers(0, 300, size=5) for row in range(50)])
    order, sure = walked_orders(recommender, histories)
    assert len(np.unique(order[:, 0])) > 1
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    items, lengths = padded(list(histories))
    with torch.inference_mode():
        state = recommender.model.start(items, lengths).squeeze(1)
        for codebook in range(4):
            column = torch.full((50,), codebook)
            legal = recommender.trie.legal(None, column)
            logits = recommender.model._logits(state, column, None).masked_fill(~legal, -torch.inf)
            fixed = logits.softmax(-1).amax(-1).numpy()
            assert (sure[:, 0] >= fixed - 1e-6).all()
            assert sure[:, 0].mean() > fixed.mean()


def test_training_follows_random_orders_and_their_seed(recommender: GenerativeRecommender) -> None:
    model = make(crowded_codes(), dropout=0.0, confidence_order=0.0).model.train()
    batch = padded([np.arange(10), np.arange(20, 25)])

    def losses(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.target_log_probs(*batch)

    torch.testing.assert_close(losses(0), losses(0), atol=0, rtol=0)
    assert (losses(0) - losses(1)).abs().max() > 1e-3


def test_training_in_the_order_of_confidence_is_decoding() -> None:
    recommender = make(crowded_codes(), dropout=0.0, confidence_order=1.0)
    batch = padded([np.arange(10), np.arange(20, 25)])
    exact = recommender.model.target_log_probs(*batch)
    torch.testing.assert_close(recommender.model.train().target_log_probs(*batch), exact)


def test_a_loss_in_any_order_matches_one_computed_by_hand() -> None:
    """Every order of a target, by its own small loop over item sets, holds the sampled loss."""
    recommender = make(crowded_codes(60), dropout=0.0, confidence_order=0.0)
    model, codes = recommender.model, recommender.codes
    target = int(np.argmax([(codes == row).sum() for row in codes]))
    items, lengths = padded([[7, target]])
    residuals, possible_losses = model.item_residuals.weight, []
    with torch.no_grad():
        for order in torch.cartesian_prod(*[torch.arange(4)] * 4):
            if len(set(order.tolist())) < 4:
                continue
            state, left, total = model.hidden_states(items[:, :1])[:, 1], np.arange(60), 0.0
            for codebook in order.tolist():
                query = model.decoder.norms[codebook](state[0])
                row = model.decoder.heads[codebook](query)
                column = codes[left, codebook]
                logits = torch.stack(
                    [row[code] + query @ residuals[left[column == code]].mean(0) for code in np.unique(column)]
                )
                slot = int(np.flatnonzero(np.unique(column) == codes[target, codebook])[0])
                total += float(logits.log_softmax(0)[slot])
                token = torch.tensor([codes[target, codebook] + 8 * codebook])
                state = model.decoder.step(state, token, torch.tensor([codebook]))
                left = left[column == codes[target, codebook]]
            assert left.tolist() == [target]
            possible_losses.append(total)
        model.train()
        seen = set()
        for seed in range(40):
            torch.manual_seed(seed)
            loss = float(model.target_log_probs(items, lengths, first_target=torch.tensor([1])))
            nearest = int(np.abs(np.array(possible_losses) - loss).argmin())
            assert loss == pytest.approx(possible_losses[nearest], abs=1e-4)
            seen.add(nearest)
    assert len(seen) > 8


def test_scalar_products_of_pairs_and_their_gradients_are_those_of_indexing() -> None:
    torch.manual_seed(0)
    queries, table = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    rows, items = torch.randint(0, 7, (5000,)).sort().values, torch.randint(0, 10, (5000,))
    weights = torch.randn(5000)
    fast = pair_dots(queries, table, rows, items)
    plain = (queries[rows] * table[items]).sum(-1)
    torch.testing.assert_close(fast, plain)
    for ours, theirs in zip(
        torch.autograd.grad(fast @ weights, (queries, table)),
        torch.autograd.grad(plain @ weights, (queries, table)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter(recommender: GenerativeRecommender) -> None:
    model = make(crowded_codes()).model.train()
    torch.manual_seed(0)
    model.target_log_probs(*padded([np.arange(10), np.arange(20, 30), np.arange(40, 50)])).sum().backward()
    moved = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    assert {name for name, _ in model.named_parameters() if not name.startswith("body.")} <= moved


def test_items_that_join_after_the_fit_do_not_water_down_residuals(recommender: GenerativeRecommender) -> None:
    codes = crowded_codes(320)
    vectors = np.random.default_rng(1).normal(size=(320, 6)).astype(np.float32)
    grown = recommender.with_catalog(codes, vectors, known=np.arange(300))
    assert (~grown.model.learned[300:]).all()
    column = torch.zeros(3, dtype=torch.int64)
    state = torch.randn(3, 16)
    token = torch.tensor([0, 1, 2])
    with torch.inference_mode():
        for old, new in ((None, None), (recommender.trie.owners(token), grown.trie.owners(token))):
            before = recommender.model._logits(state, column + 1, old)
            after = grown.model._logits(state, column + 1, new)
            known = recommender.trie.legal(old, column + 1)
            torch.testing.assert_close(before[known], after[known])
    found = grown.recommend(HISTORIES, k=320, beams=320)
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)


def test_saved_and_loaded_weights_give_the_same_list(recommender: GenerativeRecommender, tmp_path: Path) -> None:
    recommender.save(tmp_path)
    loaded = GenerativeRecommender.load(
        tmp_path, recommender.codes, recommender.codebook_sizes, recommender.item_vectors
    )
    assert isinstance(loaded.model, AnyOrderModel)
    expected, found = recommender.recommend(HISTORIES, 10), loaded.recommend(HISTORIES, 10)
    np.testing.assert_array_equal(expected.items, found.items)
    np.testing.assert_array_equal(expected.scores, found.scores)


@pytest.mark.parametrize("fused", [True, False])
def test_recommendations_follow_the_weights_through_training(fused: bool) -> None:
    recommender = make(crowded_codes())
    before = recommender.recommend(HISTORIES, 10).scores
    optimizer = torch.optim.AdamW(recommender.model.parameters(), lr=0.05, fused=fused)
    recommender.model.train()
    recommender.model.target_log_probs(*padded([[1, 2, 3]])).sum().backward()
    optimizer.step()
    recommender.model.eval()
    after = recommender.recommend(HISTORIES, 10)
    assert np.abs(after.scores - before).max() > 1e-3
    exact = score_catalogue(recommender, np.array([299]))
    np.testing.assert_allclose(after.scores[2], exact[after.items[2]], atol=1e-4)


def test_the_nested_shape_reads_parallel_codes_in_their_fixed_order() -> None:
    nested = make(crowded_codes(), shape="nested")
    found = nested.recommend(HISTORIES, k=300)
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(found.scores[2], score_catalogue(nested, np.array([299]))[found.items[2]], atol=1e-4)


def test_learning_raises_the_likelihood_of_what_comes_next() -> None:
    """Item i is followed by item i + 1: a few steps learn it, and the search finds it."""
    recommender = make(crowded_codes(50), confidence_order=0.5, dropout=0.0)
    model = recommender.model
    batch = padded([np.arange(start, start + 4) % 50 for start in range(50)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    torch.manual_seed(0)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        (-model.target_log_probs(*batch, first_target=torch.ones(50, dtype=torch.int64)).mean()).backward()
        optimizer.step()
    model.eval()
    histories = Sequences.from_lists([np.arange(start, start + 3) % 50 for start in range(50)])
    found = recommender.recommend(histories, k=1, beams=5)
    assert (found.items[:, 0] == (np.arange(50) + 3) % 50).mean() > 0.9
