"""Stage `tokenize`: item vectors become semantic IDs, with a report on their quality."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from recsys.data import Examples, IntArray, Split
from recsys.encoder.encoder import FloatArray
from recsys.files import write_json
from recsys.ranks import Ranks
from recsys.tokenizer import (
    SemanticIds,
    SemanticIdTokenizer,
    build_tokenizer,
    load_tokenizer,
    new_item_report,
    tokenizer_report,
)
from recsys.tokenizer.rqvae import RQVAETokenizer
from training.config import RunConfig
from training.layout import DATA, ENCODE, SEMANTIC_IDS, TOKENIZE, TOKENIZER, TOKENIZER_REPORT
from training.pipeline import Stage, Workspace
from training.stages import data, encode


def stage(config: RunConfig) -> Stage:
    """Seconds to a few minutes: begins anew after a kill."""
    return Stage(
        name=TOKENIZE,
        version=3,
        inputs=(DATA, ENCODE),
        settings=config.tokenizer.model_dump(mode="json"),
        build=partial(_build, config),
        shared=config.tokenizer.method == "rqvae",
    )


def _build(config: RunConfig, workspace: Workspace) -> None:
    embeddings = encode.load_embeddings(workspace.inputs[ENCODE])
    split = data.load_split(workspace.inputs[DATA])
    tokenizer = build_tokenizer(config.tokenizer)
    ids = _name_items(tokenizer, embeddings.vectors, split, workspace.ranks)
    if not workspace.ranks.leads:
        return
    ids.save(workspace.output / SEMANTIC_IDS)
    tokenizer.save(workspace.output / TOKENIZER)
    # Neither codes nor vectors were fitted on validation transitions, so they judge both.
    pairs = _transitions(split.valid)
    report = tokenizer_report(ids, tokenizer, embeddings.vectors, pairs)
    if len(split.held_out):
        report["new_items"] = new_item_report(ids, tokenizer, embeddings.vectors, split.held_out)
    write_json(workspace.output / TOKENIZER_REPORT, report)


def _name_items(tokenizer: SemanticIdTokenizer, vectors: FloatArray, split: Split, ranks: Ranks) -> SemanticIds:
    """Fit on what may be fitted on; items that are held out are encoded as any new item would be."""
    known, train = split.of_fitted(vectors), split.fitted_train
    ids = tokenizer.fit(known, train, ranks) if isinstance(tokenizer, RQVAETokenizer) else tokenizer.fit(known, train)
    if len(split.held_out) == 0:
        return ids
    fitted = split.fitted_items
    codes = np.empty((split.num_items, ids.levels), dtype=np.int64)
    raw_codes = np.empty_like(codes)
    codes[fitted], raw_codes[fitted] = ids.codes, ids.raw_codes
    codes[split.held_out] = tokenizer.encode(vectors[split.held_out], taken=ids.codes)
    raw_codes[split.held_out] = tokenizer.encode_raw(vectors[split.held_out])
    return replace(ids, codes=codes, raw_codes=raw_codes)


def load_ids(directory: Path) -> SemanticIds:
    """The semantic IDs of a finished stage."""
    return SemanticIds.load(directory / SEMANTIC_IDS)


def load_fitted(directory: Path) -> SemanticIdTokenizer:
    """The tokenizer of a finished stage."""
    return load_tokenizer(directory / TOKENIZER)


def _transitions(cases: Examples) -> IntArray:
    """int64 [m, 2]: the last item of each history that has one, and the target."""
    rows = np.flatnonzero(cases.histories.lengths > 0)
    last = cases.histories.items[cases.histories.offsets[1:][rows] - 1]
    return np.stack([last, cases.targets[rows]], axis=1)
