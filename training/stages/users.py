"""Stage `users`: users of training get semantic IDs, and whoever comes later can have one; only with
`teach.tasks.user_tokens`."""

from __future__ import annotations

from recsys.encoder.encoder import FloatArray
from recsys.files import write_json
from recsys.tokenizer import UserIndexerConfig
from recsys.tokenizer.user_histories import HistoryIndexer, user_report
from training.config import RunConfig
from training.layout import DATA, ENCODE, USER_INDEXER, USERS, USERS_REPORT
from training.pipeline import Stage, Workspace
from training.stages import data, encode


def stage(config: RunConfig) -> Stage:
    """About a minute for 20,000 users: begins anew after a kill."""
    settings = config.users or UserIndexerConfig(seed=config.run.seed)

    def build(workspace: Workspace) -> None:
        split = data.load_split(workspace.inputs[DATA])
        # Nothing but training sequences, over the items that may be fitted on.
        train = split.fitted_train
        vectors = split.of_fitted(encode.load_embeddings(workspace.inputs[ENCODE]).vectors)
        indexer, ids = HistoryIndexer.fit(settings, vectors, train)
        indexer.save(workspace.output / USER_INDEXER)
        write_json(workspace.output / USERS_REPORT, user_report(ids, indexer, train))

    return Stage(name=USERS, version=1, inputs=(DATA, ENCODE), settings=settings.model_dump(mode="json"), build=build)


def load_indexer(workspace: Workspace, vectors: FloatArray) -> HistoryIndexer:
    """The indexer of a finished stage, with the vectors of the items that it was fitted on."""
    return HistoryIndexer.load(workspace.inputs[USERS] / USER_INDEXER, vectors)
