"""Stage `tokenize`: item vectors become semantic IDs, with a report on their quality.

Naming millions of items takes minutes, so residual tokenizers keep what is done for the case of a kill: `resume/` gets
the fitted tokenizer, and then the nearest codes of a million items at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from recsys.data import Examples, IntArray, Sequences, Split
from recsys.encoder.encoder import FloatArray
from recsys.files import atomic_path, write_json
from recsys.progress import progress_bar
from recsys.tokenizer import (
    SemanticIds,
    SemanticIdTokenizer,
    TokenizerConfig,
    build_tokenizer,
    load_tokenizer,
    new_item_report,
    tokenizer_report,
)
from recsys.tokenizer.rkmeans import RKMeansTokenizer
from recsys.tokenizer.rqvae import RQVAETokenizer
from training.config import RunConfig
from training.layout import DATA, ENCODE, SEMANTIC_IDS, TOKENIZE, TOKENIZER, TOKENIZER_REPORT
from training.pipeline import Stage, Workspace
from training.stages import data, encode

_KEPT_TOGETHER = 1 << 20


def stage(config: RunConfig) -> Stage:
    """After a kill it goes on with the fitted tokenizer and the nearest codes that were found."""
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
    tokenizer, ids = _name_items(config.tokenizer, embeddings.vectors, split, workspace)
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


def _name_items(
    config: TokenizerConfig, vectors: FloatArray, split: Split, workspace: Workspace
) -> tuple[SemanticIdTokenizer, SemanticIds]:
    """Fit on what may be fitted on; items that are held out are encoded as any new item would be."""
    tokenizer, ids = _fitted(config, split.of_fitted(vectors), split.fitted_train, workspace)
    if len(split.held_out) == 0:
        return tokenizer, ids
    fitted = split.fitted_items
    codes = np.empty((split.num_items, ids.levels), dtype=np.int64)
    raw_codes = np.empty_like(codes)
    codes[fitted], raw_codes[fitted] = ids.codes, ids.raw_codes
    codes[split.held_out] = tokenizer.encode(vectors[split.held_out], taken=ids.codes)
    raw_codes[split.held_out] = tokenizer.encode_raw(vectors[split.held_out])
    return tokenizer, replace(ids, codes=codes, raw_codes=raw_codes)


def _fitted(
    config: TokenizerConfig, vectors: FloatArray, train: Sequences, workspace: Workspace
) -> tuple[SemanticIdTokenizer, SemanticIds]:
    """What `fit` makes, in steps that survive a kill where the tokenizer has such."""
    tokenizer = build_tokenizer(config)
    learn: Callable[[], object]
    if isinstance(tokenizer, RQVAETokenizer):
        learn = partial(tokenizer.learn, vectors, train, workspace.ranks)
    elif isinstance(tokenizer, RKMeansTokenizer) and tokenizer.config.balanced == "none":
        learn = partial(tokenizer.learn, vectors)
    else:
        return tokenizer, tokenizer.fit(vectors, train)
    # A counting level comes about while items are named: until then there is no whole tokenizer to keep.
    keeps = workspace.ranks.leads and tokenizer.config.collisions != "extra_level"
    kept = workspace.resume / TOKENIZER
    # What the leader sees: on a file system that many machines share, not all see a new directory at once.
    if workspace.ranks.told(kept.is_dir()):
        loaded = load_tokenizer(kept)
        assert isinstance(loaded, RQVAETokenizer | RKMeansTokenizer), "it was kept under the same settings"
        tokenizer = loaded
    else:
        learn()
        if keeps:
            tokenizer.save(kept)
    if not keeps:
        return tokenizer, tokenizer.name(vectors)
    return tokenizer, tokenizer.name(vectors, raw_codes=_raw_codes(tokenizer, vectors, workspace.resume))


def _raw_codes(tokenizer: SemanticIdTokenizer, vectors: FloatArray, resume: Path) -> IntArray:
    """int64 [n, L]: the nearest codes; a kill loses those of the last million items at most."""
    raw_codes = np.empty((len(vectors), len(tokenizer.codebooks)), dtype=np.int64)
    with progress_bar("tokenize: nearest codes", len(vectors)) as advance:
        for start in range(0, len(vectors), _KEPT_TOGETHER):
            part = slice(start, start + _KEPT_TOGETHER)
            path = resume / f"raw_codes.{start}.npy"
            if not path.is_file():
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, tokenizer.encode_raw(vectors[part]))
            raw_codes[part] = np.load(path)
            advance(len(raw_codes[part]), "")
    return raw_codes


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
