"""Contrastive tuning of a text encoder: a sentence-transformers model in, a sentence-transformers directory out.

The family of EasyRec (arXiv 2408.08821, section 3): users and items in words, InfoNCE between those that behaviour
joined, optionally masked language modelling; here also items with items, and a mode that trains only a linear head over
cached vectors. What comes out is used like any encoder, `encoder.model: DIRECTORY`, for items, for users and for what
is new: nothing in it depends on the catalogue. Fitted on training sequences only; which step is best is told by items
of those sequences that were kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.assets import default_cache_dir
from recsys.data import Catalog, IntArray, Sequences
from recsys.encoder.alignment.batch_loss import batch_loss, plan_batch
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.alignment.pairs import PairSampler, nearest_items, pasts
from recsys.encoder.alignment.profiles import UserWriter, item_profiles
from recsys.encoder.alignment.retrieval import mean_item_vectors, retrieval_recall
from recsys.encoder.alignment.towers import FrozenTower, LiveTower, Tower, append_head
from recsys.encoder.cache import encode_cached
from recsys.encoder.config import EncoderConfig
from recsys.encoder.encoder import FloatArray, TextEncoder
from recsys.encoder.text import item_texts
from recsys.errors import DataError
from recsys.files import atomic_directory, write_json
from recsys.progress import console, progress_bar
from recsys.ranks import ALONE, Ranks

_RECALL_DEPTH = 20  # EasyRec keeps the step of best Recall@20
_HOLDOUT_SHARE = 5  # at most one in so many histories gives its last item away
_WARMUP_SHARE = 0.05
_PROFILE_STREAM, _BATCH_STREAM, _HOLDOUT_STREAM = 1, 2, 3
FACTS_FILE = "alignment.json"
"""Beside the model: settings and report."""


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """What tuning did to the retrieval of training items that were kept apart."""

    holdout_users: int
    """How many users gave their last training item away."""
    holdout_candidates: int
    """Among how many items those were looked for."""
    base_recall: float
    """Recall@20 of the encoder as it was; mean over the user views."""
    best_recall: float
    """Recall@20 of what was saved; never below `base_recall`."""
    best_step: int
    """Where training was best; 0 = the encoder as it was."""


def tune_encoder(
    encoder: EncoderConfig,
    catalog: Catalog,
    train: Sequences,
    config: AlignmentConfig,
    directory: Path,
    cache_dir: Path | None = None,
    ranks: Ranks = ALONE,
) -> TuningReport:
    """Tune `encoder.model` and write the result to `directory`, whole or not at all.

    The directory is a sentence-transformers model: the base, then a Dense module with residual, then Normalize; also
    `alignment.json` with the settings and the report. Equal inputs give equal weights; torch's global random state
    stays as it was.

    Args:
        encoder: model, template and token limit; `pooling` must be `model`.
        catalog: texts of the items.
        train: TRAINING histories over the catalogue. Validation and test items must not be in it.
        config: what is trained and how.
        directory: replaced if it exists.
        cache_dir: of encoded texts; $RECSYS_CACHE or ~/.cache/recsys when None.
        ranks: processes that tune together, of which the leader writes. They share the texts of a batch where layers
            are trained; a head over cached vectors is trained in each of them, as there is little to share.

    Raises:
        ConfigError: the model cannot be tuned as asked.
        DataError: too few training histories, items outside of the catalogue, or a loss that is not finite.
        AssetError: the model can neither be fetched nor found.
    """
    if len(train.items) and int(train.items.max()) >= catalog.num_items:
        raise DataError(
            f"train holds item {int(train.items.max())}, but the catalogue has {catalog.num_items} items; use the "
            "catalogue that the split was made with"
        )
    holdout, fitted = split_holdout(train, config)
    texts = _Texts(encoder, catalog, config, cache_dir)
    model = texts.encoder.load_sentence_model()
    own_limit = model.get_max_seq_length()
    nearest = None
    if config.hard_negatives > 0:
        nearest = nearest_items(texts.encode(texts.items[0]), fitted, config.window, config.hard_negative_pool)
    frozen = config.trainable_layers == 0
    cuts = _draw_cuts(fitted, config) if frozen and config.user_view != "items" else None
    sampler = PairSampler(fitted, catalog.num_items, config, nearest, cuts)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        head = append_head(model, texts.encoder.dim)
        tower: Tower
        if frozen:
            tower = _frozen_tower(head, texts, fitted, cuts, holdout, config)
        else:
            model.max_seq_length = min(config.max_tokens, own_limit) if own_limit else config.max_tokens
            tower = LiveTower(model, texts.items, texts.users, config, ranks)
            if ranks.size > 1:
                # What is new in the model was drawn alike in all processes; dropout is not to be.
                torch.manual_seed(ranks.seed(config.seed))
        report = _train(tower, sampler, fitted, holdout, catalog.num_items, config)
    model.max_seq_length = own_limit
    if report.best_step == 0:
        console.print(
            "warning: contrastive tuning found no step better than the encoder as it was, which is saved; lower "
            "encoder.alignment.head_learning_rate, or raise temperature or steps",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if not ranks.leads:
        return report
    with atomic_directory(directory) as temporary:
        model.cpu().eval().save(str(temporary), create_model_card=False)
        facts = {"base": Path(encoder.model).name, "config": config.model_dump(mode="json"), "report": asdict(report)}
        write_json(temporary / FACTS_FILE, facts)
    return report


@dataclass(frozen=True, kw_only=True, eq=False)
class Holdout:
    """Users whose last training item is kept apart, to choose a step by."""

    rows: IntArray
    """int64 [U]: rows of the training sequences."""
    histories: Sequences
    """What lies before the item, U histories."""
    targets: IntArray
    """int64 [U]."""


def split_holdout(train: Sequences, config: AlignmentConfig) -> tuple[Holdout, Sequences]:
    """The held-out last items of a random fifth of the users at most, and the training sequences without them.

    Raises:
        DataError: not even one user can give an item away.
    """
    able = np.flatnonzero(train.lengths >= 2)
    count = min(config.holdout_users, len(able) // _HOLDOUT_SHARE)
    if count == 0:
        raise DataError(
            f"contrastive tuning needs at least {_HOLDOUT_SHARE} training histories of 2 items or more, found "
            f"{len(able)} of {len(train)}; lower the minimum of the split, or bring more interactions"
        )
    rng = np.random.default_rng([config.seed, _HOLDOUT_STREAM])
    rows = np.sort(rng.permutation(able)[:count])
    lengths = train.lengths.copy()
    lengths[rows] -= 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    last = train.offsets[rows + 1] - 1
    fitted = Sequences(users=train.users, offsets=offsets, items=np.delete(train.items, last))
    return Holdout(rows=rows, histories=fitted.select(rows), targets=train.items[last]), fitted


class _Texts:
    """All texts of a run, and the way to their vectors."""

    def __init__(
        self, encoder: EncoderConfig, catalog: Catalog, config: AlignmentConfig, cache_dir: Path | None
    ) -> None:
        self.encoder = TextEncoder(encoder, cache_dir)
        numbers = range(1, config.profiles.variants)
        rephrased = [item_profiles(catalog, config.profiles, number, config.seed) for number in numbers]
        self.items = [item_texts(catalog, encoder), *rephrased]
        self.users = UserWriter(catalog, config.profiles, config.seed)
        self._cache_dir = cache_dir or default_cache_dir()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """float32 [n, D] by the encoder as it was."""
        return encode_cached(self.encoder, texts, self._cache_dir)


def _frozen_tower(
    head: Any, texts: _Texts, fitted: Sequences, cuts: IntArray | None, holdout: Holdout, config: AlignmentConfig
) -> FrozenTower:
    """Encode every text that training with a frozen encoder will read."""
    items = np.stack([texts.encode(variant) for variant in texts.items])
    profiles: dict[int, FloatArray] = {}
    held: dict[int, FloatArray] = {}
    if cuts is not None:
        users = np.flatnonzero(cuts)
        histories = pasts(fitted, users, cuts[users])
        numbers = range(config.profiles.variants)
        vectors = [texts.encode(texts.users.write_all(histories, users, number)) for number in numbers]
        profiles = dict(zip(users.tolist(), np.stack(vectors, axis=1), strict=True))
        plain = texts.encode(texts.users.write_all(holdout.histories, holdout.rows, 0))
        held = dict(zip(holdout.rows.tolist(), plain, strict=True))
    return FrozenTower(head, items, profiles, held, config)


def _draw_cuts(fitted: Sequences, config: AlignmentConfig) -> IntArray:
    """int64 [n]: for `profile_users` random histories the place of the positive, 0 for the others."""
    rng = np.random.default_rng([config.seed, _PROFILE_STREAM])
    able = np.flatnonzero(fitted.lengths >= 2)
    rows = rng.permutation(able)[: config.profile_users]
    cuts = np.zeros(len(fitted), dtype=np.int64)
    cuts[rows] = rng.integers(1, fitted.lengths_of(rows))
    return cuts


def _train(
    tower: Tower, sampler: PairSampler, fitted: Sequences, holdout: Holdout, num_items: int, config: AlignmentConfig
) -> TuningReport:
    """Train, and leave the weights of the best step in the tower."""
    groups = tower.parameter_groups()
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    peaks = [group["lr"] for group in groups]
    weights = [parameter for group in groups for parameter in group["params"]]
    rng = np.random.default_rng([config.seed, _BATCH_STREAM])
    candidates = _candidates(holdout, num_items, config)
    base = best = _holdout_recall(tower, holdout, candidates, num_items, config)
    best_step, best_weights = 0, tower.weights()
    batches = sampler.batches(rng)
    with progress_bar("encoder: alignment steps", config.steps) as advance:
        for step in range(1, config.steps + 1):
            batch = next(batches)
            plan = plan_batch(batch, fitted, config)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * learning_rate_factor(step, config.steps)
            optimizer.zero_grad(set_to_none=True)
            loss = tower.backward(
                plan.items,
                None if config.user_view == "items" else (batch.users, plan.histories),
                rng,
                partial(batch_loss, plan=plan, batch=batch, sampler=sampler, config=config),
            )
            if not math.isfinite(loss):
                raise DataError(
                    f"encoder.alignment: the loss is {loss} at step {step}; lower head_learning_rate and "
                    "learning_rate, or raise temperature"
                )
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            if step % config.evaluate_every == 0 or step == config.steps:
                recall = _holdout_recall(tower, holdout, candidates, num_items, config)
                if recall > best:
                    best, best_step, best_weights = recall, step, tower.weights()
            advance(1, f"loss {loss:.3f} recall@{_RECALL_DEPTH} {best:.3f} (step {best_step})")
    tower.load_weights(best_weights)
    return TuningReport(
        holdout_users=len(holdout.rows),
        holdout_candidates=len(candidates),
        base_recall=base,
        best_recall=best,
        best_step=best_step,
    )


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then half a cosine down to 0 after the last of steps 1 .. `steps`."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1)))


def _candidates(holdout: Holdout, num_items: int, config: AlignmentConfig) -> IntArray:
    """int64: the held-out items, their users' pasts, and random others."""
    rng = np.random.default_rng([config.seed, _HOLDOUT_STREAM, 1])
    needed = np.union1d(holdout.targets, holdout.histories.items)
    others = np.setdiff1d(np.arange(num_items), needed)
    room = max(0, config.holdout_candidates - len(needed))
    return np.sort(np.concatenate([needed, rng.permutation(others)[:room]]))


def _holdout_recall(
    tower: Tower, holdout: Holdout, candidates: IntArray, num_items: int, config: AlignmentConfig
) -> float:
    """Recall of the held-out items among the candidates, the past masked; mean over the user views."""
    vectors = tower.item_vectors(candidates)
    place = np.full(num_items, -1, dtype=np.int64)
    place[candidates] = np.arange(len(candidates))
    histories = holdout.histories.renumber(place)
    views: list[FloatArray] = []
    if config.user_view != "profile":
        views.append(mean_item_vectors(vectors, histories))
    if config.user_view != "items":
        views.append(tower.profile_vectors(holdout.rows, holdout.histories))
    depth = (_RECALL_DEPTH,)
    recalls = [retrieval_recall(view, vectors, place[holdout.targets], depth, seen=histories) for view in views]
    return float(np.mean([recall[_RECALL_DEPTH] for recall in recalls]))
