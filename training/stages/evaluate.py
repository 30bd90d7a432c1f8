"""Stage `evaluate`: generator, fusion and baselines on the test cases, as data, as a page and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from safetensors import safe_open
from safetensors.numpy import save_file

from recsys.data import Examples, IntArray, Sequences, Split
from recsys.evaluation import (
    Baseline,
    BaselineName,
    Ranker,
    SasRec,
    TrainingCurve,
    build_baseline,
    evaluate,
    save_html,
)
from recsys.evaluation.ranker import rank_cases
from recsys.files import atomic_path
from recsys.generator import GenerativeRecommender
from recsys.tokenizer import SemanticIds
from training.config import RunConfig
from training.layout import ALIGN, DATA, ENCODE, EVALUATE, FUSE, LISTS, REPORT, REPORT_PAGE, RETRIEVE, TOKENIZE, TRAIN
from training.pipeline import Stage, Workspace
from training.stages import align, data, encode, fuse, retrieve, tokenize, train

_GENERATOR = "generator"
_SUPERVISED = "supervised"
"""The generator before it was aligned, where it was."""
_FUSED = "fused"
_SASREC = "sasrec"
_LIST = pl.List(pl.Int64)

_Fitted: TypeAlias = tuple[Ranker, TrainingCurve | None]
"""A model ready to rank, with its learning curve if it has one."""


def stage(config: RunConfig) -> Stage:
    """Goes on after the last model whose lists were complete."""
    settings = {
        "evaluation": config.evaluation.model_dump(mode="json"),
        "beams": config.generator.beams,
        "new_item_slots": config.generator.new_item_slots,
    }
    return Stage(
        name=EVALUATE,
        version=4,
        inputs=(
            DATA,
            ENCODE,
            TOKENIZE,
            TRAIN,
            *(() if config.align is None else (ALIGN,)),
            *(() if config.fusion is None else (RETRIEVE, FUSE)),
        ),
        settings=settings,
        build=lambda workspace: _build(config, workspace),
    )


def _build(config: RunConfig, workspace: Workspace) -> None:
    inputs = workspace.inputs
    whole = data.load_split(inputs[DATA])
    split = replace(whole, test=_ranked_cases(whole, config))
    ids = tokenize.load_ids(inputs[TOKENIZE])
    ranked: dict[str, _Ranked] = {}
    models: dict[str, Callable[[], _Fitted]] = {
        _GENERATOR: partial(_generator, config, inputs, ids, align.served_stage(config))
    }
    if config.align is not None:
        models[_SUPERVISED] = partial(_generator, config, inputs, ids, TRAIN)
    if config.fusion is not None:
        models[_FUSED] = partial(_fused, config, inputs)
    models |= {name: partial(_baseline, name, config, inputs, split) for name in config.evaluation.baselines}
    for name, fit in models.items():
        stored = workspace.resume / f"{name}.safetensors"
        if stored.exists():
            ranked[name] = _Ranked.load(stored)
            continue
        ranker, curve = fit()
        lists = rank_cases(
            name,
            ranker,
            split.test,
            max(config.evaluation.ks),
            num_items=split.num_items,
            mask_seen=config.evaluation.mask_seen,
            batch_size=config.evaluation.batch_size,
        )
        certified = ranker.certified_share if isinstance(ranker, _Generator) else None
        ranked[name] = _Ranked(lists=lists, curve=curve, certified=certified)
        ranked[name].save(stored)
    report = evaluate(
        {name: _Lookup(split.test.histories.users, result.lists) for name, result in ranked.items()},
        split,
        config.evaluation,
        seeds={name: config.run.seed for name in (_GENERATOR, _SUPERVISED, _FUSED, _SASREC) if name in ranked},
        notes={
            "generator": config.generator.model.shape,
            "beams": config.generator.beams,
            "new item slots": config.generator.new_item_slots,
            "held out items": split.protocol.num_held_out_items,
            **({} if len(split.test) == len(whole.test) else {"users": f"a sample of {len(whole.test):,}"}),
            **({} if (share := ranked[_GENERATOR].certified) is None else {"lists certified exact": f"{share:.1%}"}),
        },
        training_curves={name: result.curve for name, result in ranked.items() if result.curve is not None},
        code_usage=[np.bincount(ids.codes[:, level], minlength=size) for level, size in enumerate(ids.codebook_sizes)],
    )
    report.save(workspace.output / REPORT)
    columns: dict[str, Any] = {"user": split.test.histories.users, "target": split.test.targets}
    columns |= {name: pl.Series(result.lists, dtype=_LIST) for name, result in ranked.items()}
    pl.DataFrame(columns).write_parquet(workspace.output / LISTS)
    save_html(report, workspace.output / REPORT_PAGE, title=f"Evaluation of {config.run.name}")


def _ranked_cases(split: Split, config: RunConfig) -> Examples:
    at_most = config.evaluation.max_users
    return split.test if at_most is None else train.sample(split.test, at_most, config.evaluation.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """What is kept of a model once its cases are ranked: a stage that is killed does not fit it again."""

    lists: IntArray
    """int64 [cases, max(ks)]."""
    curve: TrainingCurve | None
    certified: float | None
    """Share of the lists that are proven to be the exact ones; None where nobody looked."""

    def save(self, path: Path) -> None:
        metadata = {} if self.curve is None else {"curve": self.curve.model_dump_json()}
        if self.certified is not None:
            metadata["certified"] = repr(self.certified)
        with atomic_path(path) as temporary:
            save_file({"lists": np.ascontiguousarray(self.lists)}, temporary, metadata=metadata or None)

    @classmethod
    def load(cls, path: Path) -> _Ranked:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            curve, certified = metadata.get("curve"), metadata.get("certified")
            return cls(
                lists=file.get_tensor("lists"),
                curve=None if curve is None else TrainingCurve.model_validate_json(curve),
                certified=None if certified is None else float(certified),
            )


class _Generator:
    """The generator as a `Ranker` that remembers how many of its lists were certified."""

    def __init__(self, recommender: GenerativeRecommender, beams: int, mask_seen: bool) -> None:
        self._recommender, self._beams, self._mask_seen = recommender, beams, mask_seen
        self._certified: list[bool] = []

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        found = train.recommend(self._recommender, histories, k, beams=self._beams, mask_seen=self._mask_seen)
        if found.certified is not None:
            self._certified.extend(found.certified.tolist())
        return found.items

    @property
    def certified_share(self) -> float | None:
        return float(np.mean(self._certified)) if self._certified else None


class _Lookup:
    """A `Ranker` that repeats finished lists; each user has one case."""

    def __init__(self, users: IntArray, lists: IntArray) -> None:
        self._order = np.argsort(users)
        self._users = users[self._order]
        self._lists = lists

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        return self._lists[self._order[np.searchsorted(self._users, histories.users)], :k]


def _generator(config: RunConfig, inputs: Mapping[str, Path], ids: SemanticIds, stage_name: str) -> _Fitted:
    embeddings = encode.load_embeddings(inputs[ENCODE])
    recommender = train.load_recommender(inputs[stage_name], config.generator, ids, embeddings)
    points = train.load_curve(inputs[TRAIN])
    curve = TrainingCurve(
        x_label="epoch",
        x=[point["epoch"] for point in points],
        series={
            "training loss": [point["loss"] for point in points],
            "validation NDCG@10": [point.get("ndcg@10") for point in points],
        },
    )
    if stage_name == ALIGN:
        curve = align.load_curve(inputs[ALIGN])
    beams, mask_seen = config.generator.beams, config.evaluation.mask_seen
    return _Generator(recommender, beams, mask_seen), curve


def _fused(config: RunConfig, inputs: Mapping[str, Path]) -> _Fitted:
    recommender, mask_seen = fuse.load(config, inputs), config.evaluation.mask_seen

    def rank(histories: Sequences, k: int) -> IntArray:
        return recommender.recommend(histories, k, constraints=train.unseen(histories, mask_seen)).items

    return rank, None


def _baseline(name: BaselineName, config: RunConfig, inputs: Mapping[str, Path], split: Split) -> _Fitted:
    fitted, index = split.fitted_items, split.fitted_index
    baseline: Baseline
    if name == _SASREC and config.fusion is not None:
        baseline = retrieve.load_tower(inputs[RETRIEVE])  # the very model that is a source of the fusion
    else:
        baseline = build_baseline(name, config.evaluation).fit(split.fitted_train, len(fitted), split.fitted_valid)
    # Items that are held out are unknown to a baseline for good; the last entry maps "no item" to itself.
    names = np.append(fitted, -1)
    curve = baseline.training_curve() if isinstance(baseline, SasRec) else None
    return lambda histories, k: names[baseline(histories.renumber(index), k)], curve
