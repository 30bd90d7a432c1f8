"""From settings and data to a task mix: texts, cases, teacher, rewriting. Knows how the parts fit together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data import Catalog, IntArray, Sequences
from recsys.encoder.collaborative import FloatArray
from recsys.generator.lm.chat_teacher import ChatTeacher
from recsys.generator.lm.config import TaskMixConfig
from recsys.generator.lm.reasoning import Embed, find_cases, rewrite_histories
from recsys.generator.lm.tasks import TaskMix
from recsys.generator.lm.teacher import RuleTeacher, Teacher
from recsys.generator.lm.texts import CatalogTexts, column_texts, make_texts
from recsys.tokenizer.user_histories import HistoryIndexer


def make_teacher(config: TaskMixConfig, catalog: Catalog, items: IntArray | None = None) -> Teacher:
    """The teacher that `config.reasoning` asks for. `items` are the rows whose words are counted, as in `CatalogTexts`.

    Raises:
        ConfigError: the key of the chat model is not in the environment.
        ArtifactError: its file of answers cannot be read.
    """
    titles, reasoning = column_texts(catalog, "title"), config.reasoning
    if reasoning.chat is not None:
        descriptions = column_texts(catalog, "description")
        return ChatTeacher(reasoning.chat, titles, descriptions, max_words=reasoning.max_words)
    texts = CatalogTexts(catalog, config.texts, items)
    return RuleTeacher(texts, titles, top=config.texts.top, max_words=reasoning.max_words)


def make_task_mix(
    config: TaskMixConfig,
    catalog: Catalog,
    train: Sequences,
    user_ids: Sequence[str],
    *,
    seed: int,
    items: IntArray | None = None,
    vectors: FloatArray | None = None,
    embed: Embed | None = None,
    users: HistoryIndexer | None = None,
) -> TaskMix:
    """The mix that `config` asks for; cases are explained if the reasoning task has a share.

    Args:
        config: all settings.
        catalog: the whole catalogue.
        train: training sequences.
        user_ids: the source's ids by user index, for a table of texts.
        seed: of all that is random.
        items: int64 [n], the row in `catalog` of each item of `train`; see `TaskMix`.
        vectors: float32 [num_items, dim] by row of `catalog`, for the denoised rewriting.
        embed: puts sentences into the space of `vectors`, if anything does.
        users: names users over the items of `train`, where `config.user_tokens` asks for it.

    Raises:
        ConfigError: templates, a table of texts or the chat model do not fit.
        DataError: the table of texts is malformed.
        ChatError: the chat model cannot be reached or refuses.
        ValueError: the denoised rewriting is asked for without `vectors`.
    """
    texts = make_texts(config.texts, catalog, user_ids, items)
    reasons = None
    if config.shares.reasoning.passes > 0:
        rows = np.arange(catalog.num_items) if items is None else items
        cases = find_cases(config.reasoning, train, config.max_history, seed=seed, rows=rows)
        chains = make_teacher(config, catalog, items).explain(cases)
        reasons = rewrite_histories(config.reasoning, cases, chains, vectors, embed)
    return TaskMix(config, catalog, train, texts, seed=seed, items=items, reasons=reasons, users=users)
