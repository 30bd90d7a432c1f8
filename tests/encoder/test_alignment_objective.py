"""The losses by hand, gradient caching against the whole batch, and hidden tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from recsys.encoder.alignment.gradient_cache import backward_in_chunks
from recsys.encoder.alignment.masked_language import MaskedLanguageModel, mask_tokens
from recsys.encoder.alignment.objective import cosines, info_nce, item_item_loss, user_item_loss
from recsys.errors import ConfigError

NONE_KNOWN = torch.zeros(2, 2, dtype=torch.bool)


def test_info_nce_is_the_cross_entropy_of_the_diagonal() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    rows = [
        math.log(math.exp(2) + math.exp(0) + math.exp(1)) - 2,
        math.log(math.exp(0) + math.exp(1) + math.exp(3)) - 1,
    ]
    assert info_nce(logits, torch.zeros(2, 3, dtype=torch.bool)).item() == pytest.approx(sum(rows) / 2, abs=1e-6)


def test_false_negatives_leave_the_sum_and_right_answers_stay() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    forbidden = torch.tensor([[True, False, True], [True, False, True]])
    rows = [math.log(math.exp(2) + math.exp(0)) - 2, 0.0]
    assert info_nce(logits, forbidden).item() == pytest.approx(sum(rows) / 2, abs=1e-6)
    assert forbidden[0, 0], "the caller's mask is left as it was"


def test_user_item_loss_averages_both_directions() -> None:
    users = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    candidates = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # Cosines: user 0 with 1 and sqrt(1/2); user 1 with 0 and sqrt(1/2). Temperature 1/2 doubles them.
    a, b, c = 2.0, math.sqrt(2), 0.0
    to_items = [math.log(math.exp(a) + math.exp(b)) - a, math.log(math.exp(c) + math.exp(b)) - b]
    to_users = [math.log(math.exp(a) + math.exp(c)) - a, math.log(math.exp(b) + math.exp(b)) - b]
    expected = (sum(to_items) / 2 + sum(to_users) / 2) / 2
    assert user_item_loss(users, candidates, NONE_KNOWN, temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_mined_negatives_count_for_users_only() -> None:
    users = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.cat([users, torch.tensor([[1.0, 0.0]])])
    known = torch.zeros(2, 3, dtype=torch.bool)
    first, second = math.log(2 * math.e + 1) - 1, math.log(math.e + 2) - 1
    back = math.log(math.e + 1) - 1
    expected = ((first + second) / 2 + back) / 2
    assert user_item_loss(users, candidates, known, temperature=1.0).item() == pytest.approx(expected, abs=1e-6)
    known[0, 2] = True
    masked = ((back + second) / 2 + back) / 2
    assert user_item_loss(users, candidates, known, temperature=1.0).item() == pytest.approx(masked, abs=1e-6)


def test_known_positives_are_no_negatives_in_either_direction() -> None:
    users, items = torch.eye(2), torch.ones(2, 2)
    known = torch.tensor([[False, True], [False, False]])
    # User 0 has no negative left, and neither has item 1.
    expected = (math.log(2) / 2 + math.log(2) / 2) / 2
    assert user_item_loss(users, items, known, temperature=1.0).item() == pytest.approx(expected, abs=1e-6)


def test_log_rates_are_subtracted_from_the_columns_of_items() -> None:
    users, items = torch.eye(2), torch.eye(2)
    rate = torch.tensor([math.log(4.0), math.log(0.5)])
    first = math.log(math.e / 4 + 1 / 0.5) - math.log(math.e / 4)
    second = math.log(1 / 4 + math.e / 0.5) - math.log(math.e / 0.5)
    back = math.log(math.e + 1) - 1
    expected = ((first + second) / 2 + back) / 2
    loss = user_item_loss(users, items, NONE_KNOWN, temperature=1.0, log_rate=rate)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    pair = item_item_loss(users, items, NONE_KNOWN, temperature=1.0, log_rates=(torch.zeros(2), rate))
    assert pair.item() == pytest.approx(expected, abs=1e-6)


def test_correction_makes_the_sampled_softmax_right_where_plain_in_batch_is_biased() -> None:
    """The logits that minimise the expected loss under popular sampling: with the correction log p, without it less."""
    torch.manual_seed(0)
    truth = torch.tensor([0.6, 0.3, 0.1])  # P(item | user) = how often each is the positive
    batches = torch.multinomial(truth, 64 * 400, replacement=True).reshape(400, 64)
    fitted = {}
    for corrected in (False, True):
        scores = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([scores], lr=0.05)
        for batch in batches:
            logits = scores[batch].expand(64, 64)
            if corrected:
                logits = logits - torch.log(truth * 3)[batch]
            loss = info_nce(logits, (batch[:, None] == batch[None, :]) & False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fitted[corrected] = torch.softmax(scores.detach(), 0)
    assert torch.allclose(fitted[True], truth, atol=0.05)
    assert torch.allclose(fitted[False], torch.full((3,), 1 / 3), atol=0.05), "popularity is gone without it"


def test_zero_vectors_have_cosine_zero() -> None:
    assert torch.equal(cosines(torch.zeros(1, 2), torch.eye(2)), torch.zeros(1, 2))


def gradients(network: nn.Module, run: Callable[[], Tensor]) -> tuple[float, list[Tensor]]:
    network.zero_grad()
    torch.manual_seed(3)
    loss = run()
    return loss.item(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_cache_equals_the_whole_batch(dropout: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4))
    chunks = list(torch.randn(11, 5).split(4))  # the last one is smaller

    def loss_of(embeddings: Tensor) -> Tensor:
        return user_item_loss(embeddings[:5], embeddings[5:10], torch.zeros(5, 5, dtype=torch.bool), temperature=0.1)

    def whole() -> Tensor:
        # Chunk by chunk, but with one graph: the same random numbers for the same units.
        loss = loss_of(torch.cat([network(chunk) for chunk in chunks]))
        loss.backward()
        return loss

    expected_loss, expected = gradients(network, whole)
    loss, found = gradients(network, lambda: backward_in_chunks(chunks, network, loss_of))
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_only_chunk_is_encoded_once() -> None:
    torch.manual_seed(0)
    network = nn.Linear(5, 4)
    chunk = torch.randn(6, 5)
    passes = []

    def counting(rows: Tensor) -> Tensor:
        passes.append(len(rows))
        return network(rows)

    _, one = gradients(network, lambda: backward_in_chunks([chunk], counting, lambda rows: rows.square().mean()))
    assert passes == [6]
    _, two = gradients(network, lambda: backward_in_chunks(chunk.split(3), network, lambda rows: rows.square().mean()))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_second_pass_without_the_saved_random_state_would_be_wrong() -> None:
    """The control of the test above: with other dropout the gradients differ."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    chunks = list(torch.randn(8, 5).split(4))
    passes = 0

    def forgetful(chunk: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes > len(chunks):
            torch.rand(1)
        return network(chunk)

    _, right = gradients(network, lambda: backward_in_chunks(chunks, network, lambda rows: rows.square().sum()))
    _, wrong = gradients(network, lambda: backward_in_chunks(chunks, forgetful, lambda rows: rows.square().sum()))
    assert max(float((a - b).abs().max()) for a, b in zip(right, wrong, strict=True)) > 1e-2


def test_gradient_cache_leaves_the_random_state_after_one_pass() -> None:
    network = nn.Dropout(0.5)
    chunks = list(torch.ones(8, 3).requires_grad_().split(4))
    torch.manual_seed(5)
    for chunk in chunks:
        network(chunk)
    expected = torch.rand(3)
    torch.manual_seed(5)
    backward_in_chunks(chunks, network, lambda rows: rows.sum())
    assert torch.equal(torch.rand(3), expected)


def test_hidden_tokens_follow_bert() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(10, 1000, (200, 100))
    maskable = torch.ones(200, 100, dtype=torch.bool)
    maskable[:, :20] = False
    hidden, labels = mask_tokens(tokens, maskable, 4, 1000)
    chosen = labels != -100
    assert not chosen[:, :20].any()
    assert torch.equal(hidden[~chosen], tokens[~chosen])
    assert torch.equal(labels[chosen], tokens[chosen])
    assert chosen[:, 20:].float().mean().item() == pytest.approx(0.15, abs=0.01)
    masked = (hidden[chosen] == 4).float().mean().item()
    kept = (hidden[chosen] == tokens[chosen]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)


def test_masked_language_model_trains_the_encoders_own_weights(word_model_directory: Path) -> None:
    model = SentenceTransformer(str(word_model_directory), device="cpu")
    language = MaskedLanguageModel(model[0].model, model.tokenizer)
    words = model[0].model.embeddings.word_embeddings.weight
    assert language.model.get_output_embeddings().weight is words
    own = {id(parameter) for parameter in model.parameters()}
    assert language.new_parameters()
    assert not own & {id(parameter) for parameter in language.new_parameters()}
    torch.manual_seed(1)
    features = model.preprocess(["axep bowp cupp dyep elmp axep bowp", "big new pack"] * 4)
    loss = language({name: features[name] for name in ("input_ids", "attention_mask")})
    assert loss.item() > 0
    loss.backward()
    layer = model[0].model.encoder.layer[0].attention.self.query.weight
    assert layer.grad is not None
    assert layer.grad.abs().max() > 0


def test_batch_in_which_nothing_is_hidden_costs_nothing(word_model_directory: Path) -> None:
    model = SentenceTransformer(str(word_model_directory), device="cpu")
    language = MaskedLanguageModel(model[0].model, model.tokenizer)
    features = model.preprocess(["", ""])
    assert language({name: features[name] for name in ("input_ids", "attention_mask")}).item() == 0.0


def test_tokenizer_without_mask_cannot_guess_words(word_model_directory: Path) -> None:
    model = SentenceTransformer(str(word_model_directory), device="cpu")
    model.tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="mlm_weight is above 0, but the tokenizer has no mask token; set it to 0"):
        MaskedLanguageModel(model[0].model, model.tokenizer)
