"""The fused list against its slow twin, users and items that nothing was fitted on, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_world import NEW, NUM_ITEMS, World

from recsys.data import Examples, Sequences
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.generator import Constraints
from recsys.generator.constraints import Cap
from recsys.generator.groups import Groups
from recsys.retrieval import FusedRecommender, Retrieval, fit_ranker, load_fused, load_report
from recsys.retrieval.ranker import ConditionalLogit
from recsys.retrieval.shards import IndexBuild

HISTORIES = Sequences.from_lists([[0, 1, 2], [12, 13, 12], [22, 23], [], [5, 22]])


@pytest.fixture(scope="module")
def fused(world: World) -> FusedRecommender:
    fit = fit_ranker(world.pool, world.valid, world.retrieval.config, mask_seen=True)
    return FusedRecommender(world.pool, fit.ranker)


def slowly(
    fused: FusedRecommender, history: list[int], k: int, constraints: Constraints, shown: int | None = None
) -> list[tuple[int, float]]:
    """One history: gather the union as a set, compute each feature in a loop, rank with a plain softmax."""
    pool, one = fused.pool, Sequences.from_lists([history])
    proposals = {name: source.propose(one, max(k, pool.depth), constraints) for name, source in pool.sources.items()}
    items = sorted({int(item) for proposal in proposals.values() for item in proposal.items[0] if item >= 0})
    rows = []
    for item in items:
        row: list[float] = []
        for name, proposal in proposals.items():
            scores = {other: float(proposal.scores(np.array([[other]]))[0, 0]) for other in items}
            known = sorted((other for other in items if scores[other] > -np.inf), key=lambda o: (-scores[o], o))
            if name == "popularity":
                row += [scores[item], float(item in NEW)]
            elif item in known:
                row += [scores[item], np.log(1 + known.index(item)), 0.0]
            else:
                row += [min((scores[other] for other in known), default=0.0), np.log(1 + len(known)), 1.0]
        rows.append(row)
    utilities = np.array(rows) @ fused.ranker.weights if rows else np.zeros(0)
    total = np.exp(utilities).sum() + np.exp(fused.ranker.outside)
    ranked = [(item, float(np.log(np.exp(u) / total))) for item, u in zip(items, utilities, strict=True)]
    return sorted(ranked, key=lambda pair: (-round(pair[1], 4), pair[0]))[: shown or k]


@pytest.mark.parametrize("restricted", [False, True])
def test_a_fused_list_is_the_whole_union_ranked_one_by_one(fused: FusedRecommender, restricted: bool) -> None:
    histories = HISTORIES.select(np.array([0, 1, 2, 4]))
    allow = np.random.default_rng(0).random((4, NUM_ITEMS)) < 0.7 if restricted else None
    constraints = Constraints(allow=allow, deny=list(histories))
    found = fused.recommend(histories, 8, constraints=constraints)
    for row, history in enumerate(histories):
        expected = slowly(fused, history.tolist(), 8, constraints.select(np.array([row])))
        listed = found.items[row][found.items[row] >= 0]
        assert listed.tolist() == [item for item, _ in expected]
        np.testing.assert_allclose(found.scores[row][: len(listed)], [score for _, score in expected], atol=1e-3)
        assert not np.isin(listed, history).any()
        assert allow is None or allow[row, listed].all()


def test_probabilities_fall_along_a_list_and_leave_room_for_what_was_not_found(fused: FusedRecommender) -> None:
    found = fused.recommend(HISTORIES, NUM_ITEMS)
    for row in (0, 1, 2, 4):
        assert (np.diff(found.scores[row]) <= 0).all()
        assert 0 < np.exp(found.scores[row]).sum() < 1


def test_batches_do_not_change_lists(fused: FusedRecommender) -> None:
    constraints = Constraints(deny=list(HISTORIES))
    together, apart = (fused.recommend(HISTORIES, 5, constraints=constraints, batch_size=size) for size in (256, 1))
    np.testing.assert_array_equal(together.items, apart.items)
    np.testing.assert_allclose(together.scores, apart.scores, atol=1e-4)


def test_k_beyond_the_catalogue_lists_every_permitted_item_once(fused: FusedRecommender) -> None:
    found = fused.recommend(HISTORIES, NUM_ITEMS + 10, constraints=Constraints(deny=list(HISTORIES)))
    for row, history in enumerate(HISTORIES):
        permitted = np.setdiff1d(np.arange(NUM_ITEMS), history)
        listed = found.items[row][found.items[row] >= 0]
        assert sorted(listed.tolist()) == permitted.tolist()
        assert (found.items[row][len(listed) :] == -1).all()
        assert np.isneginf(found.scores[row][len(listed) :]).all()


def test_a_restricted_list_is_as_long_as_the_restriction_allows(fused: FusedRecommender) -> None:
    few = np.zeros(NUM_ITEMS, dtype=bool)
    few[[3, 9, 20, 22]] = True
    found = fused.recommend(HISTORIES, 4, constraints=Constraints(allow=few))
    assert (np.sort(found.items, axis=1) == [3, 9, 20, 22]).all()


def test_everything_denied_is_an_empty_list(fused: FusedRecommender) -> None:
    found = fused.recommend(HISTORIES, 3, constraints=Constraints(allow=np.zeros(NUM_ITEMS, dtype=bool)))
    assert (found.items == -1).all()
    assert np.isneginf(found.scores).all()


def test_no_histories_are_no_lists(fused: FusedRecommender) -> None:
    assert fused.recommend(Sequences.from_lists([]), 3).items.shape == (0, 3)
    with pytest.raises(ValueError, match="k must be at least 1"):
        fused.recommend(HISTORIES, 0)


def test_a_user_without_history_gets_the_most_popular_items_with_their_shares(
    world: World, fused: FusedRecommender
) -> None:
    counts = world.retrieval.item_counts
    found = fused.recommend(HISTORIES, 5)
    best = np.argsort(-counts, kind="stable")[:5]
    assert found.items[3].tolist() == best.tolist()
    np.testing.assert_allclose(found.scores[3], np.log((counts[best] + 1) / (counts + 1).sum()), rtol=1e-5)


def test_a_new_item_is_listed_for_those_who_had_what_is_like_it(fused: FusedRecommender) -> None:
    candidates = fused.pool.candidates(fused.pool.propose(HISTORIES, 1, Constraints()))
    owners = candidates.owners
    for row in (0, 2):  # one has items like it, the other new items and nothing else
        of_row = candidates.items[owners == row]
        assert set(NEW) <= set(of_row.tolist())
        is_new = candidates.features[owners == row][:, fused.pool.names.index("popularity new")]
        np.testing.assert_array_equal(is_new, np.isin(of_row, NEW))
    only_new = np.isin(np.arange(NUM_ITEMS), NEW)
    assert set(fused.recommend(HISTORIES, 2, constraints=Constraints(allow=only_new)).items[0].tolist()) == set(NEW)


def test_the_ranker_is_fitted_on_the_cases_it_is_given(world: World) -> None:
    config = world.retrieval.config
    first = fit_ranker(world.pool, world.valid, config, mask_seen=True)
    again = fit_ranker(world.pool, world.valid, config, mask_seen=True)
    assert first.ranker.weights.tolist() == again.ranker.weights.tolist()
    assert first.report == again.report
    assert first.report["held_out_cases"] == 30
    assert first.report["penalty"] in config.penalties
    others = Examples(histories=world.valid.histories, targets=np.roll(world.valid.targets, 1))
    changed = fit_ranker(world.pool, others, config, mask_seen=True)
    assert first.ranker.weights.tolist() != changed.ranker.weights.tolist()


def test_the_penalty_is_the_one_with_the_least_loss_on_held_out_users(world: World) -> None:
    config = world.retrieval.config.model_copy(update={"penalties": (1e-3, 1e3)})
    report = fit_ranker(world.pool, world.valid, config, mask_seen=True).report
    losses = report["held_out_log_loss"]
    assert losses[str(report["penalty"])] == min(losses.values())


def test_fused_lists_are_better_than_those_of_any_source(world: World, fused: FusedRecommender) -> None:
    cases = world.valid
    constraints = Constraints(deny=list(cases.histories))
    hits = (fused.recommend(cases.histories, 3, constraints=constraints).items == cases.targets[:, None]).sum()
    for source in world.pool.sources.values():
        assert hits >= (source.propose(cases.histories, 3, constraints).items == cases.targets[:, None]).sum()


def test_a_fusion_comes_back_from_disk_the_same(world: World, fused: FusedRecommender, tmp_path: Path) -> None:
    world.retrieval.save(tmp_path, fused.ranker, {"cases": 120})
    loaded = load_fused(tmp_path, world.generator, world.vectors)
    constraints = Constraints(deny=list(HISTORIES))
    first, second = (model.recommend(HISTORIES, 7, constraints=constraints) for model in (fused, loaded))
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert load_report(tmp_path) == {"cases": 120}
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".safetensors"}
    with pytest.raises(ArtifactError, match="built over other vectors"):
        load_fused(tmp_path, world.generator, world.vectors + 1)
    (tmp_path / "fusion.json").write_text('{"format": 0}')
    with pytest.raises(ArtifactError, match="format 0"):
        load_fused(tmp_path, world.generator, world.vectors)


def test_a_ranker_of_other_sources_is_refused(world: World, fused: FusedRecommender) -> None:
    other = replace(fused.ranker, names=("generator value",), weights=np.ones(1))
    with pytest.raises(ArtifactError, match="fitted on generator value"):
        FusedRecommender(world.pool, other)


def test_a_weight_on_one_source_alone_gives_its_order(world: World, fused: FusedRecommender) -> None:
    names = fused.pool.names
    weights = np.where(np.array(names) == "content value", 100.0, 0.0)
    alone = FusedRecommender(world.pool, ConditionalLogit(names=names, weights=weights, outside=0.0))
    histories = HISTORIES.select(np.array([0, 1]))
    content = world.pool.sources["content"].propose(histories, 5, Constraints())
    np.testing.assert_array_equal(alone.recommend(histories, 5).items, content.items)


def test_a_capped_list_is_a_walk_over_the_fused_order(fused: FusedRecommender) -> None:
    histories = HISTORIES.select(np.array([0, 1, 2, 4]))
    groups = Groups.from_labels([[item % 5, "odd" if item % 2 else "even"] for item in range(NUM_ITEMS)])
    constraints = Constraints(deny=list(histories), caps=[Cap(groups=groups, most=2)])
    found = fused.recommend(histories, 4, constraints=constraints)
    for row, history in enumerate(histories):
        held = Constraints(deny=[history])
        ranked = slowly(fused, history.tolist(), 4, held, shown=NUM_ITEMS)
        expected: list[tuple[int, float]] = []
        for item, score in ranked:
            others = [groups.of(np.array([other]))[0] for other, _ in expected]
            if len(expected) < 4 and all(
                sum(group in other for other in others) < 2 for group in groups.of(np.array([item]))[0]
            ):
                expected.append((item, score))
        assert found.items[row].tolist() == [item for item, _ in expected]
        np.testing.assert_allclose(found.scores[row], [score for _, score in expected], atol=1e-3)


def test_a_capped_list_has_k_items_whenever_k_may_stand_in_one(fused: FusedRecommender) -> None:
    """All but four items are of one group, so the six candidates of a source are as good as one."""
    rare = [3, 9, 20, 22]
    groups = Groups.from_labels([[item] if item in rare else ["all"] for item in range(NUM_ITEMS)])
    cap = Cap(groups=groups, most=1)
    found = fused.recommend(HISTORIES, 5, constraints=Constraints(caps=[cap]))
    for row in range(len(HISTORIES)):
        assert len(set(groups.of(found.items[row]).ravel().tolist())) == 5
        assert set(rare) < set(found.items[row].tolist())
        assert (np.diff(found.scores[row]) <= 0).all()
    assert found.short == [None] * len(HISTORIES)
    longer = fused.recommend(HISTORIES, 6, constraints=Constraints(caps=[cap]))
    np.testing.assert_array_equal(np.sort(longer.items[:, :5], axis=1), np.sort(found.items, axis=1))
    assert (longer.items[:, 5] == -1).all()
    assert longer.short == ["caps"] * len(HISTORIES)


def test_batches_do_not_change_capped_lists(fused: FusedRecommender) -> None:
    cap = Cap(groups=Groups.from_labels([item // 8] for item in range(NUM_ITEMS)), most=1)
    constraints = Constraints(deny=list(HISTORIES), caps=[cap])
    together, apart = (fused.recommend(HISTORIES, 3, constraints=constraints, batch_size=size) for size in (256, 1))
    np.testing.assert_array_equal(together.items, apart.items)
    np.testing.assert_allclose(together.scores, apart.scores, atol=1e-4)


def test_indices_that_a_killed_fit_had_built_are_kept(
    world: World, fused: FusedRecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, saved = world.retrieval, tmp_path / "fusion"

    def build() -> Retrieval:
        return Retrieval.build(
            known.config.model_copy(update={"index": "hnsw"}),
            item_counts=known.item_counts,
            fitted=known.fitted,
            tower=known.tower,
            counter=known.counter,
            vectors=world.vectors,
            work=tmp_path / "work",
        )

    build()
    monkeypatch.setattr(IndexBuild, "begin", lambda *_: pytest.fail("both indices were there"))
    saved.mkdir()
    build().save(saved, fused.ranker, {})
    loaded = load_fused(saved, world.generator, world.vectors)
    found, expected = loaded.recommend(HISTORIES, 5), fused.recommend(HISTORIES, 5)
    np.testing.assert_array_equal(found.items, expected.items)


def test_a_ranker_needs_two_users_and_makes_do_with_them(world: World) -> None:
    users = world.valid.histories.users
    one = world.valid.select(np.flatnonzero(users == users[0]))
    with pytest.raises(DataError, match="at least 2 users, found 1"):
        fit_ranker(world.pool, one, world.retrieval.config, mask_seen=True)
    two = world.valid.select(np.flatnonzero(np.isin(users, users[:2])))
    report = fit_ranker(world.pool, two, world.retrieval.config, mask_seen=True).report
    assert 0 < report["held_out_cases"] < report["cases"]


def test_a_batch_of_unlike_requests_gives_what_each_alone_gives(fused: FusedRecommender) -> None:
    rng = np.random.default_rng(1)
    allow = rng.random((5, NUM_ITEMS)) < [[1.0], [0.4], [0.8], [1.0], [1.0]]
    deny = [HISTORIES[0], np.zeros(0, dtype=np.int64), HISTORIES[2], np.arange(4), HISTORIES[4]]
    lengths = [1, 3, 5, 2, fused.nested_up_to]
    sessions = ["a", None, "b", None, None]
    held = Constraints(allow=allow, deny=deny)
    together = fused.recommend(HISTORIES, max(lengths), constraints=held, sessions=sessions)
    for row, length in enumerate(lengths):
        one = np.array([row])
        alone = fused.recommend(HISTORIES.select(one), length, constraints=held.select(one))
        np.testing.assert_array_equal(together.items[row, :length], alone.items[0])
        np.testing.assert_allclose(together.scores[row, :length], alone.scores[0], atol=1e-4)


def test_a_fusion_weighs_the_objectives_of_its_generator(fused: FusedRecommender, world: World) -> None:
    with pytest.raises(ConfigError, match="one objective"):
        fused.weighted({"accuracy": 1.0})
    generator = world.generator.with_objectives(["accuracy", "novelty"], noise=0.5)
    narrow = fused.with_generator(generator).with_beams(4)
    for name in ("accuracy", "novelty"):
        expected = fused.with_generator(generator.weighted({name: 1.0})).with_beams(4).recommend(HISTORIES, 5)
        found = narrow.weighted({name: 1.0}).recommend(HISTORIES, 5)
        assert found.items.tolist() == expected.items.tolist()
        assert found.scores == pytest.approx(expected.scores)
