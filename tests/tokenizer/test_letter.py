from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.data import Sequences
from recsys.errors import ConfigError, DataError
from recsys.tokenizer import RQVAEConfig, build_tokenizer
from recsys.tokenizer.letter import (
    behaviour_vectors,
    code_groups,
    collaborative_loss,
    diversity_loss,
    group_partners,
)


def test_collaborative_loss_is_the_cross_entropy_of_dot_products() -> None:
    quantized = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    behaviour = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    # Logits [[2, 1], [0, 2]].
    expected = (np.log(1 + np.exp(-1)) + np.log(1 + np.exp(-2))) / 2
    loss = collaborative_loss(quantized, behaviour, torch.tensor([True, True]))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_items_without_behaviour_are_neither_rows_nor_columns() -> None:
    quantized = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0]], requires_grad=True)
    behaviour = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    covered = torch.tensor([True, False, True])
    loss = collaborative_loss(quantized, behaviour, covered)
    pair = collaborative_loss(quantized[covered], behaviour[covered], torch.tensor([True, True]))
    assert loss.item() == pytest.approx(pair.item())
    (gradient,) = torch.autograd.grad(loss, quantized)
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2]] != 0).any(dim=1).all()
    assert float(collaborative_loss(quantized, behaviour, torch.zeros(3, dtype=torch.bool))) == 0


def test_items_that_behave_alike_are_no_negatives() -> None:
    quantized = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    behaviour = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
    logits = quantized @ behaviour.T
    logits[0, 1] = logits[1, 0] = -torch.inf
    expected = -torch.log_softmax(logits, dim=1).diagonal().mean()
    loss = collaborative_loss(quantized, behaviour, torch.ones(3, dtype=torch.bool))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_behaviour_vectors_have_the_codes_width_and_unit_norm_on_average() -> None:
    train = Sequences.from_lists([[0, 1, 2], [1, 2, 3], [0, 3]])
    vectors, covered = behaviour_vectors(train, 6, dim=8)
    assert vectors.shape == (6, 8)
    assert vectors.dtype == torch.float32
    assert covered.tolist() == [True] * 4 + [False] * 2
    assert float(vectors[covered].norm(dim=1).mean()) == pytest.approx(1.0, rel=1e-5)
    assert (vectors[~covered] == 0).all()
    assert (vectors[:, 5:] == 0).all()  # 6 items have at most 5 dimensions


def test_training_sequences_that_cannot_be_used_are_named() -> None:
    with pytest.raises(DataError, match="train holds items 0 to 9, but there are embeddings of 6 items"):
        behaviour_vectors(Sequences.from_lists([[0, 9]]), 6, dim=4)
    with pytest.raises(DataError, match=r"tokenizer\.collaborative_weight .* no training sequence holds two"):
        behaviour_vectors(Sequences.from_lists([[0], [1]]), 6, dim=4)


def test_partner_is_any_other_code_of_the_same_group() -> None:
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    codes = torch.arange(6).repeat(200)
    torch.manual_seed(0)
    partners, paired = group_partners(codes, groups)
    drawn = {(int(code), int(partner)) for code, partner in zip(codes, partners, strict=True) if groups[code] != 2}
    assert drawn == {(0, 2), (0, 5), (2, 0), (2, 5), (5, 0), (5, 2), (1, 4), (4, 1)}
    assert torch.equal(paired, codes != 3)
    share = (partners[codes == 0] == 2).float().mean()
    assert 0.35 < share < 0.65


def test_diversity_loss_leaves_out_the_own_code_and_groups_of_one() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    groups = torch.tensor([0, 1, 0, 1])
    codes = torch.tensor([0, 1])
    # q C^T = [1, 0, 1, -1] without code 0, label 2; [0, 1, 1, 0] without code 1, label 3.
    first = -1 + np.log(np.exp(0) + np.exp(1) + np.exp(-1))
    second = -0 + np.log(np.exp(0) + np.exp(1) + np.exp(0))
    loss = diversity_loss(codebook[codes], codes, codebook, groups)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)
    alone = torch.tensor([0, 1, 0, 2])
    assert float(diversity_loss(codebook[codes], codes, codebook, alone)) == pytest.approx(first, rel=1e-6)
    assert float(diversity_loss(codebook[codes], codes, codebook, torch.arange(4))) == 0


def test_diversity_loss_closes_groups_up_and_drives_them_apart() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(12, 4, requires_grad=True)
    groups = torch.from_numpy(code_groups(codebook.detach().numpy(), seed=0))

    def cosines() -> tuple[float, float]:
        unit = torch.nn.functional.normalize(codebook.detach(), dim=1)
        cosine, same = unit @ unit.T, groups[:, None] == groups[None, :]
        off = ~torch.eye(12, dtype=torch.bool)
        return float(cosine[same & off].mean()), float(cosine[~same].mean())

    inside, outside = cosines()
    optimizer = torch.optim.Adam([codebook], lr=0.02)
    for _ in range(200):
        codes = torch.randint(0, 12, (64,))
        optimizer.zero_grad()
        diversity_loss(torch.nn.functional.embedding(codes, codebook), codes, codebook, groups).backward()
        optimizer.step()
    closer, further = cosines()
    assert closer > inside + 0.1
    assert further < outside - 0.1


def test_groups_of_codewords_are_of_equal_size() -> None:
    codebook = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    sizes = np.bincount(code_groups(codebook, seed=0))
    assert len(sizes) == 10
    assert sizes.max() <= 26
    assert sizes.min() >= 20
    np.testing.assert_array_equal(code_groups(codebook, seed=0), code_groups(codebook, seed=0))


def twins() -> tuple[np.ndarray, Sequences]:
    """100 pairs of items with nearly the same text; one of each is for the first kind of user, one for the second."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(100, 16)).repeat(2, axis=0)
    kind = np.arange(200) % 2
    direction = rng.normal(size=16)
    text += 0.5 * np.where(kind == 1, 0.5, -0.5)[:, None] * direction / np.linalg.norm(direction)
    histories = [rng.permutation(np.flatnonzero(kind == user % 2))[:12] for user in range(500)]
    return text.astype(np.float32), Sequences.from_lists(histories)


def separated(weight: float, embeddings: np.ndarray, train: Sequences) -> float:
    """Share of twins whose nearest codes differ."""
    config = RQVAEConfig(
        levels=2,
        codebook_size=16,
        code_dim=8,
        hidden=(32,),
        warmup_steps=50,
        steps=300,
        learning_rate=5e-3,
        codebook="gradient",
        collaborative_weight=weight,
    )
    raw = build_tokenizer(config).fit(embeddings, train).raw_codes
    return float((raw[::2] != raw[1::2]).any(axis=1).mean())


def test_behaviour_separates_textual_twins_and_shuffled_behaviour_does_not() -> None:
    embeddings, train = twins()
    shuffled = train.renumber(np.random.default_rng(1).permutation(200))
    without = separated(0.0, embeddings, train)
    real = separated(2.0, embeddings, train)
    random = separated(2.0, embeddings, shuffled)
    assert real > without + 0.2
    assert random < without + 0.1


def test_behaviour_needs_training_sequences(embeddings: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.collaborative_weight is above 0, which needs the training"):
        build_tokenizer(RQVAEConfig(collaborative_weight=0.1)).fit(embeddings)
