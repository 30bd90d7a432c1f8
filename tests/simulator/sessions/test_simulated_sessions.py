from __future__ import annotations

import gymnasium
import numpy as np
import polars as pl
import pytest
from gymnasium.utils.env_checker import check_env
from scipy import stats
from simulated_world import NUM_ITEMS, make_log, make_model

from recsys.data import Sequences
from recsys.errors import ConfigError, DataError
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.sessions.arms import CachedArm, LiveArm, Page, Slates
from recsys.simulator.sessions.crowd import Crowd
from recsys.simulator.sessions.environment import SlateSessions
from recsys.simulator.sessions.noise import extended, gumbel, keys, normal, uniform
from recsys.simulator.sessions.play import PlayConfig, Played, play

POPULATION = make_log(40).sequences()
USER_IDS = [f"u{user}" for user in range(40)]
ITEM_IDS = [f"i{item}" for item in range(NUM_ITEMS)]


def ranked(scores: np.ndarray):
    """A ranker: unseen items by a score."""

    def ranker(histories: Sequences, k: int) -> np.ndarray:
        lists = np.full((len(histories), k), -1)
        for row, history in enumerate(histories):
            order = [item for item in np.argsort(-scores, kind="stable") if item not in history][:k]
            lists[row, : len(order)] = order
        return lists

    return ranker


BEST, WORST = ranked(-np.arange(NUM_ITEMS)), ranked(np.arange(NUM_ITEMS))


def of_genre(*, own: bool):
    """A ranker: items of the genre that the history has most of come first, or last."""

    def ranker(histories: Sequences, k: int) -> np.ndarray:
        rows = []
        for history in histories:
            genre = np.bincount(history % 4, minlength=4).argmax()
            scores = np.where(np.arange(NUM_ITEMS) % 4 == genre, 1.0, 0.0)
            rows.append(ranked(scores if own else -scores)(Sequences.from_lists([history]), k)[0])
        return np.stack(rows)

    return ranker


def played(config: PlayConfig, **arms) -> Played:
    return play(make_model(), arms, POPULATION, config, user_ids=USER_IDS, item_ids=ITEM_IDS)


def test_noise_depends_on_each_of_its_parts_and_on_nothing_else() -> None:
    users, items = np.arange(50)[:, None], np.arange(40)
    drawn = uniform(keys(7, users, 3, items))
    assert drawn.shape == (50, 40)
    assert len(np.unique(drawn)) == drawn.size
    np.testing.assert_array_equal(drawn[10, 5], uniform(keys(7, 10, 3, 5)))
    np.testing.assert_array_equal(uniform(extended(keys(7, 10), 3)), uniform(keys(7, 10, 3)))
    assert not np.isin(uniform(keys(8, users, 3, items)), drawn).any()


def test_noise_has_the_distributions_that_it_names() -> None:
    key = keys(1, np.arange(20_000), -4)
    assert stats.kstest(uniform(key), "uniform").pvalue > 0.01
    assert stats.kstest(gumbel(key), "gumbel_r").pvalue > 0.01
    assert stats.kstest(normal(key), "norm").pvalue > 0.01
    other = uniform(keys(1, np.arange(20_000), -3))
    assert abs(np.corrcoef(uniform(key), other)[0, 1]) < 0.03


def test_choices_happen_as_often_as_their_probabilities_say() -> None:
    model, count = make_model(), 20_000
    histories = Sequences.from_lists([[0, 4]] * count)
    crowd = Crowd(model, histories, users=np.arange(count), sessions=np.zeros(count, dtype=int), seed=3)
    slate = np.tile([8, 1, -1, 12], (count, 1))
    chances = crowd.chances(slate)[0]
    places = crowd.react(slate).places
    observed = np.bincount(places + 1, minlength=5) / count
    np.testing.assert_allclose(observed[1:], chances, atol=0.012)
    assert observed[3] == 0
    assert observed[0] == pytest.approx(1 - chances.sum(), abs=0.012)


def test_the_probabilities_are_those_of_the_written_formula() -> None:
    model = make_model(temperature=1.3)
    crowd = Crowd(model, Sequences.from_lists([[0, 4]]), users=np.array([0]), sessions=np.array([0]), seed=0)
    slate = np.array([[8, 1, 12]])
    utilities = model.utilities(crowd.memories, crowd.recent, slate, crowd.traits)[0].astype(float)
    worth = model.log_worth(crowd.memories, crowd.recent, crowd.traits)[0]
    weights = np.exp(np.array([0.0, -0.4, -0.7])) * np.exp(utilities / 1.3)
    nothing = np.exp((model.parameters.null + worth) / 1.3)
    np.testing.assert_allclose(crowd.chances(slate)[0], weights / (weights.sum() + nothing), rtol=1e-6)


def test_the_log_has_a_row_for_each_place_and_adds_up() -> None:
    result = played(PlayConfig(size=4, max_steps=5, sessions_per_user=3, seed=2), best=CachedArm(ranker=BEST))
    shown, sessions = result.impressions, result.sessions
    assert shown.columns[:9] == [
        "arm", "user_id", "session", "step", "position", "item_id", "chosen", "reward", "propensity"
    ]  # fmt: skip
    assert len(sessions) == 120
    assert sessions["steps"].sum() * 4 == len(shown)
    assert sessions["choices"].sum() == shown["chosen"].sum() == shown["reward"].sum()
    assert sessions["expected"].sum() == pytest.approx(shown["chance"].sum())
    assert (shown["propensity"] == 1).all()
    assert sessions["steps"].max() <= 5
    by_page = shown.group_by("arm", "user_id", "session", "step").agg(
        pl.col("chosen").sum(), pl.col("item_id").n_unique().alias("items")
    )
    assert by_page["chosen"].max() <= 1
    assert (by_page["items"] == 4).all()


def test_the_same_seed_gives_the_same_log_however_many_other_users_and_arms_there_are() -> None:
    config = PlayConfig(size=3, max_steps=4, sessions_per_user=2, seed=9)
    alone = played(config, best=CachedArm(ranker=BEST))
    both = played(config, worst=CachedArm(ranker=WORST), best=CachedArm(ranker=BEST))
    assert both.impressions.filter(pl.col("arm") == "best").equals(alone.impressions)
    few = play(
        make_model(),
        {"best": CachedArm(ranker=BEST)},
        POPULATION.select(np.arange(5)),
        config,
        user_ids=USER_IDS[:5],
        item_ids=ITEM_IDS,
    )
    assert alone.sessions.filter(pl.col("user_id").is_in(USER_IDS[:5])).equals(few.sessions)
    other = played(config.model_copy(update={"seed": 10}), best=CachedArm(ranker=BEST))
    assert not other.impressions.equals(alone.impressions)


def test_equal_arms_have_equal_logs_and_common_luck_at_least_halves_the_variance_of_differences() -> None:
    near = ranked(-np.where(np.arange(NUM_ITEMS) % 7 == 0, np.arange(NUM_ITEMS) + 1.5, np.arange(NUM_ITEMS)))
    arms = {"a": CachedArm(ranker=BEST), "same": CachedArm(ranker=BEST), "near": CachedArm(ranker=near)}

    def differences(same_luck: bool) -> np.ndarray:
        config = PlayConfig(size=5, max_steps=3, sessions_per_user=20, same_luck=same_luck)
        rewards = played(config, **arms).sessions.pivot("arm", index=["user_id", "session"], values="reward")
        if same_luck:
            assert (rewards["a"] == rewards["same"]).all()
        return (rewards["near"] - rewards["a"]).to_numpy()

    assert differences(True).var() <= 0.5 * differences(False).var()


def test_better_lists_earn_more() -> None:
    config = PlayConfig(size=5, max_steps=3, sessions_per_user=5)
    arms = {name: CachedArm(ranker=of_genre(own=name == "suited")) for name in ("suited", "unsuited")}
    result = played(config, **arms)
    earned = dict(result.sessions.group_by("arm").agg(pl.col("expected").mean()).iter_rows())
    assert earned["suited"] > earned["unsuited"]


def test_a_live_arm_is_asked_with_what_was_taken_in_the_session() -> None:
    seen: list[int] = []

    def watched(histories: Sequences, k: int) -> np.ndarray:
        seen.append(int(histories.lengths.max()))
        return BEST(histories, k)

    result = played(PlayConfig(size=5, max_steps=4, sessions_per_user=3), live=LiveArm(ranker=watched))
    assert max(seen) > POPULATION.lengths.max()
    taken = result.impressions.filter("chosen")
    # Who is asked anew leaves out what was taken, so nothing is taken twice.
    assert not taken.select("user_id", "session", "item_id").is_duplicated().any()


def test_drawn_slates_say_their_propensities() -> None:
    arm = CachedArm(ranker=BEST, spread=1.0, width=2)
    count = 6000
    page = Page(
        population=POPULATION,
        users=np.zeros(count, dtype=int),
        sessions=np.arange(count),
        choices=np.zeros((count, 0), dtype=int),
        size=3,
        max_steps=2,
        seed=0,
    )
    slates = arm(page)
    slates.check(page, NUM_ITEMS)
    pool = BEST(POPULATION.select(np.array([0])), 6)[0]
    weights = 1 / np.arange(1, 7)
    first = np.array([(slates.items[:, 0] == item).mean() for item in pool])
    np.testing.assert_allclose(first, weights / weights.sum(), atol=0.02)
    rows = slates.items[:, 0] == pool[0]
    second = slates.items[rows, 1] == pool[1]
    assert second.mean() == pytest.approx(weights[1] / weights[1:].sum(), abs=0.03)
    np.testing.assert_allclose(slates.propensities[rows][second, 1], weights[1] / weights[1:].sum())


def test_propensities_of_draws_that_are_nearly_certain_are_exact() -> None:
    # Weights from 1 down to 12 ** -20: what is left after the first ones is far below the precision of their sum.
    arm = CachedArm(ranker=BEST, spread=0.05)
    page = Page(
        population=POPULATION,
        users=np.zeros(50, dtype=int),
        sessions=np.arange(50),
        choices=np.zeros((50, 0), dtype=int),
        size=12,
        max_steps=1,
        seed=0,
    )
    slates = arm(page)
    pool = BEST(POPULATION.select(np.array([0])), 12)[0]
    for items, propensities in zip(slates.items, slates.propensities, strict=True):
        ranks = [pool.tolist().index(item) + 1.0 for item in items]
        expected = [ranks[place] ** -20 / sum(rank**-20 for rank in ranks[place:]) for place in range(12)]
        np.testing.assert_allclose(propensities, expected, rtol=1e-9)


def test_an_arm_without_items_ends_the_session() -> None:
    result = played(PlayConfig(size=40, max_steps=9, seed=1), best=CachedArm(ranker=BEST))
    ended = result.sessions["ended"].value_counts()
    assert set(ended["ended"]) >= {"items", "left"}


@pytest.mark.parametrize(
    ("items", "propensities", "message"),
    [
        ([[1, 1]], [[1.0, 1.0]], "hold an item twice"),
        ([[1, NUM_ITEMS]], [[1.0, 1.0]], "items must lie in"),
        ([[1, 2]], [[1.0, 0.0]], "propensities must lie in"),
        ([[1]], [[1.0]], "slates must be"),
    ],
)
def test_impossible_slates_are_refused(items: list, propensities: list, message: str) -> None:
    arm = lambda page: Slates(  # noqa: E731
        items=np.repeat(items, len(page.users), axis=0), propensities=np.repeat(propensities, len(page.users), axis=0)
    )
    with pytest.raises(DataError, match=message):
        played(PlayConfig(size=2), bad=arm)


def test_no_arm_and_foreign_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 arms"):
        played(PlayConfig())
    with pytest.raises(DataError, match="1 user ids for 40 users"):
        play(make_model(), {"a": CachedArm(ranker=BEST)}, POPULATION, PlayConfig(), user_ids=["u"], item_ids=ITEM_IDS)


def environment(**options) -> SlateSessions:
    return SlateSessions(make_model(), POPULATION, size=4, max_steps=5, **options)


@pytest.mark.filterwarnings("ignore:.*Box observation space:UserWarning")
def test_gymnasium_accepts_the_environment() -> None:
    check_env(environment(), skip_render_check=True)


def test_the_environment_plays_the_sessions_of_the_vectorised_engine() -> None:
    result = played(PlayConfig(size=4, max_steps=5, seed=11), best=CachedArm(ranker=BEST))
    world = environment()
    for user in range(12):
        rows = result.impressions.filter(pl.col("user_id") == f"u{user}")
        world.reset(seed=11, options={"user": user})
        for step, page in enumerate(rows.partition_by("step", maintain_order=True)):
            action = np.array([int(item[1:]) for item in page["item_id"]])
            observation, reward, left, cut, info = world.step(action)
            assert reward == page["reward"].sum()
            np.testing.assert_allclose(info["chances"], page["chance"].to_numpy(), rtol=1e-5)
            assert observation["step"] == step + 1
        assert left or cut


def test_the_environment_refuses_foreign_users_and_sizes() -> None:
    with pytest.raises(ConfigError, match="user=40"):
        environment().reset(options={"user": 40})
    with pytest.raises(ConfigError, match="size=99"):
        SlateSessions(make_model(), POPULATION, size=99)
    assert isinstance(environment(), gymnasium.Env)


def choice_shares(kind: str, slate: list[int]) -> np.ndarray:
    crowd = Crowd(
        make_model(),
        Sequences.from_lists([[0, 4, 8]]),
        users=np.array([0]),
        sessions=np.array([0]),
        seed=0,
        traits=Traits.of([kind]),  # type: ignore[list-item]
    )
    return crowd.chances(np.array([slate]))[0]


def test_stress_users_are_what_they_are_called() -> None:
    ordinary = choice_shares("ordinary", [44, 1, 47])
    # 44 is of the user's genre, 1 is popular, 47 is neither.
    chaser = choice_shares("popularity_chaser", [44, 1, 47])
    assert chaser[1] / chaser[0] > 3 * ordinary[1] / ordinary[0]
    skimmer = choice_shares("skimmer", [44, 1, 47])
    assert skimmer[2] / skimmer[0] < 0.2 * ordinary[2] / ordinary[0]
    adversarial = choice_shares("adversarial", [44, 1, 47])
    assert adversarial.sum() == pytest.approx(1)
    assert adversarial[2] / adversarial[0] > ordinary[2] / ordinary[0]


def test_a_drifting_taste_leaves_its_history_and_others_do_not() -> None:
    model, count = make_model(), 50
    crowd = Crowd(
        model,
        Sequences.from_lists([[0, 4, 8]] * count),
        users=np.arange(count),
        sessions=np.zeros(count, dtype=int),
        seed=0,
        traits=Traits.of(["drifting"] * 25 + ["ordinary"] * 25),  # type: ignore[arg-type]
    )
    begin = crowd.memories.sums.copy()
    for _ in range(10):
        crowd.react(np.full((count, 2), -1))
    kept = np.einsum("bd,bd->b", begin[:, 1], crowd.memories.sums[:, 1]) / (
        np.linalg.norm(begin[:, 1], axis=1) * np.linalg.norm(crowd.memories.sums[:, 1], axis=1)
    )
    np.testing.assert_allclose(kept[25:], 1, rtol=1e-5)
    assert kept[:25].mean() < 0.9
