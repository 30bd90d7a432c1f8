"""DAS on planted structure: behaviour parts what content hardly tells apart, and popularity is independent of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from recsys.data import Sequences
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.tokenizer import SemanticIds, load_tokenizer
from recsys.tokenizer.das import DASConfig
from recsys.tokenizer.das.config import ALL_VIEWS
from recsys.tokenizer.das.tokenizer import DASTokenizer, mean_embeddings
from recsys.tokenizer.residual import summed_codes

NUM_ITEMS, NUM_GROUPS, NUM_USERS = 240, 12, 300
SMALL: dict[str, Any] = {
    "levels": 3,
    "codebook_size": 16,
    "code_dim": 8,
    "behaviour_dim": 8,
    "hidden": (32,),
    "warmup_steps": 50,
    "steps": 150,
    "batch_size": 128,
    "alignment_weight": 0.5,
}


class World:
    """Items of 12 groups that users keep to; pairs of groups have nearly the same content.

    Popularity falls with the item's number inside its group, whatever the group. Every user's last click is held out.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.group = np.arange(NUM_ITEMS) % NUM_GROUPS
        loud = 2.0 * rng.normal(size=(NUM_GROUPS // 2, 16))[self.group // 2]
        loud[:, 0] = 1.2 * np.where(self.group % 2, 1, -1)
        self.embeddings = (loud + 0.8 * rng.normal(size=(NUM_ITEMS, 16))).astype(np.float32)
        weight = 1 / (1 + np.arange(NUM_ITEMS) // NUM_GROUPS)
        histories = []
        for user in range(NUM_USERS):
            own = np.flatnonzero(self.group == user % NUM_GROUPS)
            histories.append(rng.choice(own, 7, replace=False, p=weight[own] / weight[own].sum()))
        self.train = Sequences.from_lists([items[:-1] for items in histories])
        self.held_out = np.array([items[-1] for items in histories])
        self.popularity = np.log1p(np.bincount(self.train.items, minlength=NUM_ITEMS))

    def unseen_pairs(self) -> np.ndarray:
        """int64 [m, 2]: items of one group that no user clicked both of."""
        together = np.zeros((NUM_ITEMS, NUM_ITEMS), dtype=bool)
        for items in self.train:
            together[np.ix_(items, items)] = True
        same = self.group[:, None] == self.group
        return np.argwhere(np.triu(same & ~together, 1))

    def shuffled(self) -> Sequences:
        """The training sequences with items renamed at random."""
        return self.train.renumber(np.random.default_rng(5).permutation(NUM_ITEMS))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def fit(world: World, train: Sequences | None = None, **settings: Any) -> tuple[DASTokenizer, SemanticIds]:
    tokenizer = DASTokenizer(DASConfig(**{**SMALL, **settings}))
    return tokenizer, tokenizer.fit(world.embeddings, world.train if train is None else train)


@pytest.fixture(scope="module")
def one_stage(world: World) -> tuple[DASTokenizer, SemanticIds]:
    return fit(world)


@pytest.fixture(scope="module")
def semantic_only(world: World) -> tuple[DASTokenizer, SemanticIds]:
    return fit(world, views=(), behaviour_weight=0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def separation(world: World, tokenizer: DASTokenizer, ids: SemanticIds) -> float:
    """AUC: unseen pairs of one group against pairs of its twin, which has nearly the same content, by code vectors."""
    vectors = unit(summed_codes(ids.raw_codes, tokenizer.codebooks))
    pairs = world.unseen_pairs()
    rng = np.random.default_rng(3)
    twins = [rng.choice(np.flatnonzero(world.group == world.group[a] ^ 1)) for a in pairs[:, 0]]
    near = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(axis=1)
    far = (vectors[pairs[:, 0]] * vectors[twins]).sum(axis=1)
    return float((near > far).mean() + 0.5 * (near == far).mean())


def user_auc(world: World, users: np.ndarray, items: np.ndarray, rows: np.ndarray) -> float:
    """Held-out clicks against the clicks of random others, so that popularity is no help."""
    others = world.held_out[np.random.default_rng(4).permutation(NUM_USERS)]
    scores = unit(users)[rows] @ unit(items).T
    hit, miss = (scores[np.arange(NUM_USERS), target] for target in (world.held_out, others))
    return float((hit > miss).mean() + 0.5 * (hit == miss).mean())


def r_squared(vectors: np.ndarray, target: np.ndarray) -> float:
    """Of a linear probe, on every second item after learning from the others."""
    inputs = np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)
    weights = np.linalg.lstsq(inputs[::2], target[::2], rcond=None)[0]
    error = target[1::2] - inputs[1::2] @ weights
    return float(1 - error.var() / target[1::2].var())


def test_alignment_brings_items_of_one_audience_together_and_shuffled_behaviour_does_not(
    world: World, one_stage: tuple[DASTokenizer, SemanticIds], semantic_only: tuple[DASTokenizer, SemanticIds]
) -> None:
    aligned, semantic = separation(world, *one_stage), separation(world, *semantic_only)
    control = separation(world, *fit(world, world.shuffled()))
    assert aligned > semantic + 0.1
    assert control < semantic + 0.03


def test_one_stage_beats_two_on_the_same_steps(world: World, one_stage: tuple[DASTokenizer, SemanticIds]) -> None:
    two_stages = separation(world, *fit(world, stages="two"))
    assert separation(world, *one_stage) > two_stages + 0.03


def test_users_named_from_profiles_match_the_items_they_click(
    world: World, one_stage: tuple[DASTokenizer, SemanticIds]
) -> None:
    tokenizer, ids = one_stage
    assert tokenizer.user_ids is not None
    users = tokenizer.user_vectors(tokenizer.user_ids.codes)
    items = tokenizer.item_vectors(ids.codes)
    rows = np.arange(NUM_USERS)
    assert user_auc(world, users, items, rows) > 0.75
    shuffled = [user_auc(world, users, items, np.random.default_rng(seed).permutation(rows)) for seed in range(10, 20)]
    assert abs(np.mean(shuffled) - 0.5) < 0.02


def test_popularity_goes_into_its_own_half(world: World, one_stage: tuple[DASTokenizer, SemanticIds]) -> None:
    vectors = one_stage[0].behaviour
    assert vectors is not None
    assert vectors.interest.shape == vectors.conformity.shape == (NUM_USERS, 8)
    biased, unbiased = (r_squared(half, world.popularity) for half in (vectors.popularity, vectors.property))
    assert biased > unbiased + 0.3
    cosines = (unit(vectors.property) * unit(vectors.popularity)).sum(axis=1)
    assert (cosines**2).mean() < 0.05


def test_without_the_orthogonality_term_the_halves_overlap_more(
    world: World, one_stage: tuple[DASTokenizer, SemanticIds]
) -> None:
    def overlap(tokenizer: DASTokenizer) -> float:
        assert tokenizer.behaviour is not None
        users = unit(tokenizer.behaviour.interest) * unit(tokenizer.behaviour.conformity)
        items = unit(tokenizer.behaviour.property) * unit(tokenizer.behaviour.popularity)
        return float((users.sum(axis=1) ** 2).mean() + (items.sum(axis=1) ** 2).mean())

    without, _ = fit(world, orthogonality_weight=0, steps=30)
    assert overlap(without) > 2 * overlap(one_stage[0])


def test_codes_are_unique_and_reproduced_and_deeper_codes_say_more(
    world: World, one_stage: tuple[DASTokenizer, SemanticIds]
) -> None:
    tokenizer, ids = one_stage
    assert len(np.unique(ids.codes, axis=0)) == NUM_ITEMS
    assert tokenizer.encode_raw(world.embeddings).tolist() == ids.raw_codes.tolist()
    assert tokenizer.encode_raw(world.embeddings[9:10]).tolist() == ids.raw_codes[9:10].tolist()
    errors = [
        np.square(world.embeddings - tokenizer.reconstruct(ids.raw_codes[:, :depth])).sum() for depth in (1, 2, 3)
    ]
    variance = np.square(world.embeddings - world.embeddings.mean(axis=0)).sum()
    assert errors[2] < errors[1] < errors[0] < variance


def test_new_items_and_users_are_named_from_content_alone(
    world: World, one_stage: tuple[DASTokenizer, SemanticIds]
) -> None:
    tokenizer, ids = one_stage
    users = tokenizer.user_ids
    assert users is not None
    new = world.embeddings[:20] + 0.01
    named = tokenizer.encode(new.astype(np.float32), ids.codes)
    assert len(np.unique(np.concatenate([ids.codes, named]), axis=0)) == NUM_ITEMS + 20
    profiles = mean_embeddings(world.embeddings, world.train)
    assert tokenizer.users.encode_raw(profiles).tolist() == users.raw_codes.tolist()
    assert len(users.codes) == NUM_USERS == len(np.unique(users.codes, axis=0))
    some = tokenizer.encode_users(profiles[:5], np.zeros((0, 3), dtype=np.int64))
    assert len(some) == 5


def test_saved_and_loaded_tokenizers_agree_bit_for_bit(
    world: World, one_stage: tuple[DASTokenizer, SemanticIds], tmp_path: Path
) -> None:
    tokenizer, ids = one_stage
    tokenizer.save(tmp_path / "das")
    loaded = DASTokenizer.load(tmp_path / "das", tokenizer.config)
    profiles = mean_embeddings(world.embeddings, world.train)
    assert np.array_equal(loaded.latents(world.embeddings), tokenizer.latents(world.embeddings))
    assert np.array_equal(loaded.users.latents(profiles), tokenizer.users.latents(profiles))
    assert np.array_equal(loaded.reconstruct(ids.codes), tokenizer.reconstruct(ids.codes))
    assert loaded.user_ids is not None
    assert tokenizer.user_ids is not None
    assert loaded.behaviour is not None
    assert tokenizer.behaviour is not None
    assert np.array_equal(loaded.user_ids.codes, tokenizer.user_ids.codes)
    assert np.array_equal(loaded.user_ids.raw_codes, tokenizer.user_ids.raw_codes)
    users = tokenizer.user_ids.codes
    assert np.array_equal(loaded.user_vectors(users), tokenizer.user_vectors(users))
    assert np.array_equal(loaded.item_vectors(ids.codes), tokenizer.item_vectors(ids.codes))
    assert np.array_equal(loaded.behaviour.conformity, tokenizer.behaviour.conformity)
    loaded.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "das" / name).read_bytes()


def test_arrays_that_do_not_fit_the_config_or_each_other_are_refused(
    one_stage: tuple[DASTokenizer, SemanticIds], tmp_path: Path
) -> None:
    tokenizer, _ = one_stage
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.safetensors"
    arrays = load_file(file)

    def cut(name: str) -> dict[str, np.ndarray]:
        return {name: arrays[name][:5].copy()}

    def nan(name: str) -> dict[str, np.ndarray]:
        return {name: np.full_like(arrays[name], np.nan)}

    for change, message in (
        (cut("codebook.1"), r"codebook\.1 has shape \[5, 8\], but its config needs \[16, 8\]"),
        ({"codebook.0": np.zeros((0, 8), np.float32)}, r"codebook\.0 has shape \[0, 8\]"),
        ({"codebook.0": np.zeros((), np.float32)}, r"codebook\.0 has shape \[\]"),
        ({"codebook.1": None}, r"lacks codebook\.1"),
        ({"codebook.2": None}, "2 codebooks, but its config needs 3"),
        (nan("codebook.2"), r"codebook\.2 holds NaN"),
        (cut("users.codebook.1"), r"users\.codebook\.1 has shape \[5, 8\]"),
        ({"users.codebook.0": None}, r"lacks users\.codebook\.0"),
        ({"users.codebook.2": None}, r"2 users\.codebooks, but its config needs 3"),
        (nan("users.codebook.0"), r"users\.codebook\.0 holds NaN"),
        ({"users.codebook_sizes": np.array([16, 16, 17])}, r"users\.codebook_sizes is \[16, 16, 17\]"),
        ({"users.codebook_sizes": np.array(16)}, r"users\.codebook_sizes is 16"),
        ({"users.codes": arrays["users.codes"] + 16}, r"users\.codes: .*outside of its codebook"),
        (cut("users.raw_codes"), r"users\.codes: .*must be equal"),
        ({"mean": np.zeros(7)}, r"codebook\.0 has shape \[16, 8\], but its config needs \[16, 7\]"),
        ({"mean": np.zeros((4, 4))}, "mean has shape"),
        ({"scale": np.zeros(0)}, "scale has shape"),
        ({"users.mean": None}, r"lacks users\.mean"),
        ({"users.scale": np.full(1, np.nan)}, r"users\.scale holds NaN"),
        ({"encoder.0.weight": np.zeros((3, 3))}, r"encoder\.0\.weight has shape"),
        (nan("decoder.0.bias"), r"decoder\.0\.bias holds NaN"),
        ({"encoder.0.bias": None}, r"lacks encoder\.0\.bias"),
        ({"users.decoder.0.weight": None}, r"lacks users\.decoder\.0\.weight"),
        (nan("users.encoder.0.weight"), r"users\.encoder\.0\.weight holds NaN"),
        (cut("projection.item"), r"projection\.item has shape \[5, 8\]"),
        (nan("projection.user"), r"projection\.user holds NaN"),
        (cut("behaviour.interest"), r"behaviour\.interest has shape \[5, 8\], but its config needs \[300, 8\]"),
        (cut("behaviour.popularity"), r"behaviour\.popularity has shape \[5, 8\]"),
        ({"behaviour.property": np.zeros((240, 3), np.float32)}, r"behaviour\.property has shape \[240, 3\]"),
        ({"behaviour.property": None}, r"lacks behaviour\.property"),
        (nan("behaviour.conformity"), r"behaviour\.conformity holds NaN"),
    ):
        save_file({name: array for name, array in (arrays | change).items() if array is not None}, file)
        with pytest.raises(ArtifactError, match=message):
            load_tokenizer(tmp_path)
    file.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot read the tokenizer's arrays"):
        load_tokenizer(tmp_path)


def test_tokenizers_without_a_behaviour_model_or_its_biased_halves_survive_the_disk(
    world: World, semantic_only: tuple[DASTokenizer, SemanticIds], tmp_path: Path
) -> None:
    semantic_only[0].save(tmp_path / "semantic")
    assert DASTokenizer.load(tmp_path / "semantic", semantic_only[0].config).behaviour is None
    plain, _ = fit(world, **SHORT, debias=False)
    plain.save(tmp_path / "plain")
    loaded = DASTokenizer.load(tmp_path / "plain", plain.config).behaviour
    assert loaded is not None
    assert plain.behaviour is not None
    assert loaded.popularity.shape == (NUM_ITEMS, 0)
    assert np.array_equal(loaded.property, plain.behaviour.property)


SHORT = {"warmup_steps": 4, "steps": 8}


def test_the_same_seed_gives_the_same_codes_and_leaves_the_random_state(world: World) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (fit(world, **SHORT, seed=seed)[1].codes.tolist() for seed in (0, 0, 1))
    assert torch.random.get_rng_state().equal(before)
    assert first == again
    assert first != other


def test_clicks_that_leak_into_training_change_the_codes(world: World) -> None:
    # That held-out clicks stay out is the caller's part, and tested end to end; here, that a leak would show.
    leaked = Sequences.from_lists(
        [np.append(items, target) for items, target in zip(world.train, world.held_out, strict=True)]
    )
    assert fit(world, leaked, **SHORT)[1].codes.tolist() != fit(world, **SHORT)[1].codes.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        *({"views": tuple(view for view in ALL_VIEWS if view != left_out)} for left_out in ALL_VIEWS),
        {"views": ("co_item",), "behaviour_weight": 0},
        {"stages": "two"},
        {"debias": False},
        {"click_loss": "bce"},
        {"frequency_correction": True},
    ],
    ids=str,
)
def test_every_part_can_be_switched_and_changes_the_codes(world: World, settings: dict[str, Any]) -> None:
    usual = fit(world, **SHORT)[0].latents(world.embeddings)
    changed = fit(world, **SHORT, **settings)[0].latents(world.embeddings)
    assert np.isfinite(changed).all()
    assert not np.array_equal(usual, changed)


def test_the_second_of_two_stages_leaves_the_encoder_as_alignment_left_it(world: World) -> None:
    def latents(steps: int) -> np.ndarray:
        return fit(world, stages="two", warmup_steps=4, steps=steps)[0].latents(world.embeddings)

    # 8 and 9 steps both align for 4; 10 align for 5.
    assert np.array_equal(latents(8), latents(9))
    assert not np.array_equal(latents(8), latents(10))


def test_profile_vectors_of_another_width_are_taken_in_place_of_the_stand_in(world: World) -> None:
    profiles = np.random.default_rng(0).normal(size=(NUM_USERS, 5)).astype(np.float32)
    tokenizer = DASTokenizer(DASConfig(**{**SMALL, **SHORT}))
    tokenizer.fit(world.embeddings, world.train, profiles)
    assert tokenizer.user_ids is not None
    assert tokenizer.users.encode_raw(profiles).tolist() == tokenizer.user_ids.raw_codes.tolist()
    with pytest.raises(DataError, match="299 rows, train has 300"):
        tokenizer.fit(world.embeddings, world.train, profiles[1:])
    profiles[3, 2] = np.nan
    with pytest.raises(DataError, match=r"user_embeddings: .*NaN"):
        tokenizer.fit(world.embeddings, world.train, profiles)


def test_the_stand_in_is_the_unit_mean_of_the_training_items() -> None:
    embeddings = np.array([[1, 0], [0, 1], [3, 4]], dtype=np.float32)
    means = mean_embeddings(embeddings, Sequences.from_lists([[0, 1], [2], []]))
    np.testing.assert_allclose(means, [[0.5**0.5, 0.5**0.5], [0.6, 0.8], [0, 0]], atol=1e-6)


def test_behaviour_that_is_missing_is_refused(world: World) -> None:
    tokenizer = DASTokenizer(DASConfig(**SMALL))
    with pytest.raises(ConfigError, match="needs training sequences"):
        tokenizer.fit(world.embeddings)
    with pytest.raises(DataError, match="co_item has no pairs"):
        tokenizer.fit(world.embeddings, Sequences.from_lists([[0], [1]]))
    with pytest.raises(DataError, match="co_user has no pairs"):
        tokenizer.fit(world.embeddings, Sequences.from_lists([[0, 1], [2, 3]]))
    with pytest.raises(DataError, match="item 240, but there are embeddings of 240 items"):
        tokenizer.fit(world.embeddings, Sequences.from_lists([[0, 240]]))


def test_too_few_codes_for_the_users_are_refused_before_training(world: World) -> None:
    with pytest.raises(DataError, match="300 users do not fit into 256 codes"):
        fit(world, levels=2)


def test_views_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="behaviour_weight is 0, but views"):
        DASConfig(behaviour_weight=0)
    with pytest.raises(ValidationError, match="names one twice"):
        DASConfig(views=("co_item", "co_item"))
