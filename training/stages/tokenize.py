"""Stage `tokenize`: item vectors become semantic IDs, with a report on their quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys.data import Examples, IntArray
from recsys.files import write_json
from recsys.tokenizer import SemanticIds, SemanticIdTokenizer, build_tokenizer, load_tokenizer, tokenizer_report
from training.config import RunConfig
from training.layout import DATA, ENCODE, TOKENIZE, TOKENIZER_REPORT
from training.pipeline import Stage, Workspace
from training.stages import data, encode

_IDS = "semantic_ids"
_TOKENIZER = "tokenizer"


def stage(config: RunConfig) -> Stage:
    """Seconds to a few minutes: begins anew after a kill."""

    def build(workspace: Workspace) -> None:
        embeddings = encode.load_embeddings(workspace.inputs[ENCODE])
        tokenizer = build_tokenizer(config.tokenizer)
        ids = tokenizer.fit(embeddings.vectors)
        ids.save(workspace.output / _IDS)
        tokenizer.save(workspace.output / _TOKENIZER)
        # Neither codes nor vectors were fitted on validation transitions, so they judge both.
        pairs = _transitions(data.load_split(workspace.inputs[DATA]).valid)
        write_json(workspace.output / TOKENIZER_REPORT, tokenizer_report(ids, tokenizer, embeddings.vectors, pairs))

    return Stage(
        name=TOKENIZE,
        version=2,
        inputs=(DATA, ENCODE),
        settings=config.tokenizer.model_dump(mode="json"),
        build=build,
    )


def load_ids(directory: Path) -> SemanticIds:
    """The semantic IDs of a finished stage."""
    return SemanticIds.load(directory / _IDS)


def load_fitted(directory: Path) -> SemanticIdTokenizer:
    """The tokenizer of a finished stage."""
    return load_tokenizer(directory / _TOKENIZER)


def _transitions(cases: Examples) -> IntArray:
    """int64 [m, 2]: the last item of each history that has one, and the target."""
    rows = np.flatnonzero(cases.histories.lengths > 0)
    last = cases.histories.items[cases.histories.offsets[1:][rows] - 1]
    return np.stack([last, cases.targets[rows]], axis=1)
