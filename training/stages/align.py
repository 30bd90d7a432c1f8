"""Stage `align`: the trained generator, tuned further on rewards of its own lists or on preference pairs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.builders.config import PairsConfig
from recsys.alignment.group_policy import Policy, Prompts, current_prompts, labelled_prompts
from recsys.alignment.losses import READ_FLIP_RATES
from recsys.alignment.rewards import RewardContext, Scorer, build_rewards
from recsys.alignment.rewards.popularity_guard import mean_level
from recsys.data import Examples, IntArray, Sequences, Split
from recsys.errors import ConfigError
from recsys.evaluation import TrainingCurve
from recsys.evaluation.baselines.counting import item_counts
from recsys.evaluation.baselines.sasrec_model import pick_device
from recsys.evaluation.metrics import accuracy_metrics
from recsys.files import write_json
from recsys.generator import GenerativeRecommender
from recsys.generator.constraints import Constraints
from recsys.generator.groups import Groups
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons
from recsys.generator.lm.texts import column_texts
from recsys.generator.placement import place
from training.align import AlignConfig, ObjectivesConfig
from training.config import RunConfig
from training.group_policy import Served, fit_group_policy
from training.layout import ALIGN, ALIGN_REPORT, DATA, ENCODE, PAIRS, RETRIEVE, TOKENIZE, TRAIN
from training.pipeline import Stage, Workspace
from training.preference_fit import fit_preferences
from training.scalars import ScalarLog
from training.stages import data, encode, retrieve, tokenize, train
from training.stages.pairs import load_pairs

_REASONED_AT_ONCE = 32
"""Validation cases whose chains are written together."""
_DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of an objective that the report looks at."""
_COUNTER_FLOOR = 0.01
"""What an item without any evidence has of the counter, so that its logarithm is finite."""


def stage(config: RunConfig, align: AlignConfig) -> Stage:
    """Goes on from the last validation.

    Raises:
        ConfigError: the method reads what the run does not have.
    """
    if align.method == "preference":
        _check_pairs(config, align)
        # Without what is off, so that what was aligned before there was a choice stays up to date.
        off = {"objectives"} if align.objectives is None else set()
        chosen = align.model_dump(mode="json", exclude={"rewards", "prompts", "group_policy", *off})
    else:
        _check_reasoning(config, align)
        _check_rewards(align)
        chosen = align.model_dump(mode="json", exclude={"preference", "objectives"})
        # Without what is off, so that what was aligned before these options came stays up to date.
        if align.group_policy.reasoning is None:
            del chosen["group_policy"]["reasoning"]
        if align.group_policy.policy.weight_power == 1:
            del chosen["group_policy"]["policy"]["weight_power"]
    return Stage(
        name=ALIGN,
        version=1,
        inputs=(
            DATA,
            ENCODE,
            TOKENIZE,
            TRAIN,
            *((PAIRS,) if align.method == "preference" else ()),
            *((RETRIEVE,) if reads_scorers(align) else ()),
        ),
        settings={"align": chosen, "mask_seen": config.evaluation.mask_seen, "seed": config.run.seed},
        build=partial(_build, config, align),
        # Losses of pairs, and chains with their answers, are of a batch as a whole.
        shared=align.method == "group_policy" and align.group_policy.reasoning is None,
    )


def _check_pairs(config: RunConfig, align: AlignConfig) -> None:
    if config.pairs is None:
        raise ConfigError("align.method=preference reads pairs; add a section `pairs`, or set group_policy")
    if align.objectives is not None:
        _check_objectives(config, align.objectives, config.pairs)
    _check_soft_labels(align, config.pairs)
    unread = [name for name in ("ratings", "perturbed", "clicks", "novelty") if getattr(config.pairs, name) is not None]
    if align.preference.negatives == "table":
        return
    if unread:
        raise ConfigError(
            f"align.preference.negatives={align.preference.negatives} reads no rejected items, so pairs.{unread[0]} "
            "would teach nothing; set align.preference.negatives=table, or drop it"
        )
    if align.objectives is not None:
        raise ConfigError(
            f"align.preference.negatives={align.preference.negatives} knows no objectives; set "
            "align.preference.negatives=table, or drop align.objectives"
        )


def _check_soft_labels(align: AlignConfig, pairs: PairsConfig) -> None:
    softening = [(number, each.kind) for number, each in enumerate(pairs.filters) if each.softens]
    loss, negatives = align.preference.loss.name, align.preference.negatives
    if softening and (loss not in READ_FLIP_RATES or negatives != "table"):
        number, kind = softening[0]
        raise ConfigError(
            f"pairs.filters[{number}]: {kind} says how likely an order is wrong, which align.preference with loss.name="
            f"{loss} and negatives={negatives} does not read; set negatives=table and a loss of "
            f"{', '.join(sorted(READ_FLIP_RATES))}, or drop the filter"
        )
    for number, each in enumerate(pairs.filters):
        if loss == "robust" and each.kind == "consistency" and each.average == "pair":
            # Of two answers, rankers agree in all or in nothing.
            raise ConfigError(
                f"pairs.filters[{number}]: consistency with average=pair gives pairs a label_noise_prob of 0.5 or "
                "more, for which align.preference.loss.name=robust has no value; set average=all, or loss.name=cream"
            )


def _check_objectives(config: RunConfig, objectives: ObjectivesConfig, pairs: PairsConfig) -> None:
    if config.generator.model.shape != "nested":
        raise ConfigError(
            f"align.objectives: a head an objective needs generator.model.shape=nested, got "
            f"{config.generator.model.shape}; drop align.objectives"
        )
    missing = sorted(set(objectives.weights or ()) - set(pairs.objectives))
    if missing:
        raise ConfigError(
            f"align.objectives.weights: no pairs of this run are about {missing[0]}; they are about "
            f"{' and '.join(pairs.objectives)}"
        )


def _check_reasoning(config: RunConfig, align: AlignConfig) -> None:
    if align.group_policy.reasoning is None:
        return
    if config.generator.model.lm is None:
        raise ConfigError(
            "align.group_policy.reasoning: the generator knows no words; set generator.model.lm, or drop it"
        )
    if not config.teach.tasks.shares.reasoning.passes:
        raise ConfigError(
            "align.group_policy.reasoning: the generator is not taught to reason; set "
            "teach.tasks.shares.reasoning.passes above 0, or drop it"
        )


def _check_rewards(align: AlignConfig) -> None:
    for term in align.rewards.terms:
        if term.kind == "learned":
            raise ConfigError(f"align.rewards: {term.term_name!r} asks a reward model, and the stage has none; drop it")
        if term.kind in ("rubric", "reference_text") and align.group_policy.reasoning is None:
            raise ConfigError(
                f"align.rewards: {term.term_name!r} judges texts, and this policy writes none; set "
                "align.group_policy.reasoning, or drop it"
            )


def reads_scorers(align: AlignConfig) -> bool:
    """Whether a reward asks SASRec or the counter of stage `retrieve`."""
    return align.method == "group_policy" and any(term.kind == "scorer" for term in align.rewards.terms)


def served_stage(config: RunConfig) -> str:
    """The stage whose generator is served: the aligned one, where there is one."""
    return TRAIN if config.align is None else ALIGN


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fitted:
    """What may be learned from: the items that are not held out, in their own numbering, and training interactions."""

    recommender: GenerativeRecommender
    train: Sequences
    cases: Examples
    """Of validation, those that early stopping sees."""
    popularity: IntArray
    """int64 [N], training interactions of each item."""

    def served(self, config: RunConfig, align: AlignConfig) -> Served:
        """What is served comes to on the validation cases as the model stands, in the mode that is tuned."""
        reasoning = align.group_policy.reasoning if align.method == "group_policy" else None
        if reasoning is None:
            return self.served_directly(config, align)
        cases = train.sample(self.cases, reasoning.validation_users, config.run.seed)
        lists = _reasoned_lists(
            self.recommender,
            cases.histories,
            reasoning.served,
            beams=align.validation_beams,
            mask_seen=config.evaluation.mask_seen,
            seed=config.run.seed,
        )
        return _measured(lists, cases, self.popularity, len(self.recommender.codes))

    def served_directly(self, config: RunConfig, align: AlignConfig) -> Served:
        """What the decoder comes to right behind a history."""
        return served(
            self.recommender, self.cases, self.popularity, align.validation_beams, config.evaluation.mask_seen
        )


def _build(config: RunConfig, align: AlignConfig, workspace: Workspace) -> None:
    inputs = workspace.inputs
    split = data.load_split(inputs[DATA])
    embeddings = encode.load_embeddings(inputs[ENCODE])
    ids = tokenize.load_ids(inputs[TOKENIZE])
    stored = train.load_recommender(inputs[TRAIN], config.generator, ids, embeddings)
    items, index = split.fitted_items, split.fitted_index
    vectors = None if stored.item_vectors is None else split.of_fitted(stored.item_vectors)
    # Held-out items join again once the weights stand: none of them is pushed down as a wrong answer.
    fitted = _Fitted(
        recommender=stored.with_catalog(split.of_fitted(ids.codes), vectors, known=index)
        if len(split.held_out)
        else stored,
        train=split.fitted_train,
        cases=train.sample(split.fitted_valid, align.validation_users, config.run.seed),
        popularity=item_counts(split.fitted_train, len(items)),
    )
    if align.objectives is not None:
        assert config.pairs is not None, "checked with the stage"
        chosen = align.objectives.weights
        weights = None if chosen is None else {str(name): weight for name, weight in chosen.items()}
        fitted = dataclasses.replace(
            fitted,
            recommender=fitted.recommender.with_objectives(
                config.pairs.objectives,
                weights=weights,
                noise=align.objectives.noise,
                seed=config.run.seed,
            ),
        )
    device = pick_device(align.group_policy.device if align.method == "group_policy" else align.preference.device)
    place(fitted.recommender.model, device)
    before = fitted.served(config, align)
    reasons = align.method == "group_policy" and align.group_policy.reasoning is not None
    before_directly = fitted.served_directly(config, align) if reasons else None
    with ScalarLog(workspace.run_dir) as log:
        if align.method == "group_policy":
            context = _context(config, align, inputs, split, fitted)
            policy_fit = fit_group_policy(
                fitted.recommender.model,
                prompts(fitted.train, align, config.run.seed),
                build_rewards(align.rewards, context.to(device)),
                align.group_policy,
                seed=config.run.seed,
                start=before,
                validate=lambda: fitted.served(config, align),
                mask_seen=config.evaluation.mask_seen,
                horizon=align.prompts.horizon,
                checkpoint_dir=workspace.resume,
                log=log,
                ranks=workspace.ranks,
            )
            curve, best, raised = policy_fit.curve, policy_fit.best_update, policy_fit.alarms
        else:
            pair_fit = fit_preferences(
                fitted.recommender,
                load_pairs(inputs[PAIRS]).renumber(index),
                align.preference,
                seed=config.run.seed,
                validate=lambda: fitted.served(config, align).ndcg,
                mask_seen=config.evaluation.mask_seen,
                heads_only=align.objectives is not None and align.objectives.tune == "heads",
                checkpoint_dir=workspace.resume,
                log=log,
            )
            curve, best, raised = pair_fit.curve, pair_fit.best_epoch, []
    if not workspace.ranks.leads:
        return
    after = fitted.served(config, align)
    directly = None
    if before_directly is not None:
        # The other mode of the same weights, which nothing above looked after.
        directly = {
            "before": dataclasses.asdict(before_directly),
            "after": dataclasses.asdict(fitted.served_directly(config, align)),
        }
    dial = None if align.objectives is None else _dial(config, align, fitted)
    place(fitted.recommender.model, torch.device("cpu"))
    aligned = fitted.recommender
    if len(split.held_out):
        aligned = aligned.with_catalog(ids.codes, stored.item_vectors, known=items)
    aligned.save(workspace.output)
    report = {
        "method": align.method,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "best": best,
        "alarms": raised,
        "curve": curve,
        **({} if dial is None else {"objectives": dict(fitted.recommender.objectives), "dial": dial}),
    }
    if directly is not None:
        report["direct_mode"] = directly
    write_json(workspace.output / ALIGN_REPORT, report)


def _dial(config: RunConfig, align: AlignConfig, fitted: _Fitted) -> list[dict[str, Any]]:
    """What the validation lists come to as the weight goes from the first objective to each of the others."""
    first, *others = fitted.recommender.objectives
    entries = []
    for other in others:
        for share in _DIAL:
            weights = {first: 1 - share, other: share}
            mixed = dataclasses.replace(fitted, recommender=fitted.recommender.weighted(weights))
            entries.append({"weights": weights, **dataclasses.asdict(mixed.served(config, align))})
    return entries


def _context(
    config: RunConfig, align: AlignConfig, inputs: Mapping[str, Path], split: Split, fitted: _Fitted
) -> RewardContext:
    ids, items = tokenize.load_ids(inputs[TOKENIZE]), split.fitted_items
    catalog = data.load_catalog(inputs[DATA])
    categories = catalog.frame["categories"][items].to_list()
    titles, descriptions = catalog.titles, column_texts(catalog, "description")
    popularity = torch.from_numpy(fitted.popularity)
    reference = None
    # A search over all cases, for the one reward that asks for it.
    if any(term.kind == "popularity_guard" for term in align.rewards.terms):
        futures = torch.zeros(len(fitted.cases), 0, dtype=torch.int64)
        proposed = Policy(fitted.recommender.model).propose(
            fitted.cases.histories, 10, futures=futures, mask_seen=config.evaluation.mask_seen
        )
        reference = mean_level(proposed.rollouts, popularity.to(proposed.rollouts.items.device))
    return RewardContext(
        codes=torch.from_numpy(split.of_fitted(ids.codes)),
        codebook_sizes=ids.codebook_sizes,
        ordered=ids.ordered,
        ordinal=ids.ordinal,
        popularity=popularity,
        item_vectors=torch.from_numpy(split.of_fitted(encode.load_embeddings(inputs[ENCODE]).vectors)),
        categories=Groups.from_labels(categories) if any(categories) else None,
        category_names=list(dict.fromkeys(name for row in categories for name in row)),
        titles=[titles[item] for item in items.tolist()],
        texts=[descriptions[item] for item in items.tolist()] if any(descriptions) else None,
        reference_popularity=reference,
        scorers=scorers(inputs[RETRIEVE]) if reads_scorers(align) else {},
    )


def prompts(train_sequences: Sequences, align: AlignConfig, seed: int) -> Prompts:
    """The prompts that the configuration asks for.

    Raises:
        ConfigError: none.
    """
    chosen = align.prompts
    parts = []
    if chosen.labelled:
        parts.append(
            labelled_prompts(train_sequences, min_history=chosen.min_history, max_prompts=chosen.labelled, seed=seed)
        )
    if chosen.current:
        parts.append(current_prompts(train_sequences))
    if not parts:
        raise ConfigError("align.prompts: set labelled above 0, or current: true; there is nothing to ask the policy")
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def scorers(retrieved: Path) -> Mapping[str, Scorer]:
    """`sasrec` and `skip_gram`: the models of stage `retrieve` as log-scores of all fitted items.

    Both were fitted on training sequences alone.
    """
    tower, counter = retrieve.load_tower(retrieved), retrieve.load_counter(retrieved)

    def sasrec(histories: Sequences) -> npt.NDArray[np.float32]:
        scores = torch.from_numpy(np.asarray(tower.scores(histories), dtype=np.float32))
        return np.asarray(scores.log_softmax(-1).numpy())

    def skip_gram(histories: Sequences) -> npt.NDArray[np.float32]:
        evidence = np.asarray(counter.evidence(histories).toarray(), dtype=np.float32)
        return np.asarray(np.log(evidence + _COUNTER_FLOOR))

    return {"sasrec": sasrec, "skip_gram": skip_gram}


def load_curve(directory: Path) -> TrainingCurve:
    """NDCG@10 on validation by update or epoch, the supervised model first."""
    report = json.loads((directory / ALIGN_REPORT).read_text())
    points = [entry for entry in report["curve"] if "ndcg@10" in entry]
    return TrainingCurve(
        x_label="update",
        x=[0.0, *(entry["steps"] for entry in points)],
        series={"validation NDCG@10": [report["before"]["ndcg"], *(entry["ndcg@10"] for entry in points)]},
    )


def served(
    recommender: GenerativeRecommender, cases: Examples, popularity: IntArray, beams: int, mask_seen: bool
) -> Served:
    """What the decoder comes to on validation cases, with at least 50 beams."""
    lists = train.rank(recommender, cases.histories, 50, beams=beams, mask_seen=mask_seen)
    return _measured(lists, cases, popularity, len(recommender.codes))


def _reasoned_lists(
    recommender: GenerativeRecommender,
    histories: Sequences,
    how: ReasonConfig,
    *,
    beams: int,
    mask_seen: bool,
    seed: int,
) -> IntArray:
    """int64 [B, 50]: the items of mode `reason`; the same chains under the same seed and weights."""
    recommender.model.eval()
    lists = []
    for begin in range(0, len(histories), _REASONED_AT_ONCE):
        some = histories.select(np.arange(begin, min(begin + _REASONED_AT_ONCE, len(histories))))
        constraints = Constraints(deny=list(some)) if mask_seen else None
        found = recommend_with_reasons(
            recommender, some, 50, how, seed=seed + begin, constraints=constraints, beams=beams
        )
        lists.append(found.recommendations.items)
    return np.concatenate(lists)


def _measured(lists: IntArray, cases: Examples, popularity: IntArray, num_items: int) -> Served:
    metrics = accuracy_metrics(lists, cases.targets, (10, 50))
    top = lists[:, :10]
    top = top[top >= 0]
    return Served(
        ndcg=float(metrics["ndcg@10"].numerator.mean()),
        recall_at_50=float(metrics["recall@50"].numerator.mean()),
        coverage=len(np.unique(top)) / num_items,
        popularity=float(np.log1p(popularity[top]).mean()),
    )
