"""The details of a list for whoever asks for them: codes, the stage, the rules that fired. Knows no routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio.to_thread
import structlog

from serving.answers import Answer, Query
from serving.context import ServingContext
from serving.fired import Fired, fired_rules
from serving.models import ServedModel
from serving.runtime import RecommenderRuntime
from serving.schemas.lists import FiredRule, ListDetails, RecommendedItem, TouchedItem
from serving.schemas.rules import Rules

_log = structlog.get_logger(__name__)


async def detailed(
    context: ServingContext,
    model: ServedModel,
    query: Query,
    rules: Rules | None,
    answer: Answer,
    shown: Answer,
    items: Sequence[RecommendedItem],
    deadline: float,
) -> tuple[list[RecommendedItem], ListDetails]:
    """The items of a list with what the generator says of their codes, and how the list came about.

    Args:
        context: what the routes share.
        model: made the list.
        query: as it was asked.
        rules: as the request has them; None for a list without rules.
        answer: of the model.
        shown: what of it the whole list is.
        items: of the page.
        deadline: by the clock of `time.monotonic`; codes that are not told by then are left out.
    """
    runtime = model.runtime
    fired: list[Fired] = []
    if rules is not None:
        fired = await anyio.to_thread.run_sync(fired_rules, rules, query, answer, shown, runtime, context.settings)
    details = ListDetails(stage=answer.stage, rules=[_fired_rule(runtime, each) for each in fired])
    follows_history = query.task in ("next", "rank") and answer.source in ("generator", "fusion")
    if not follows_history or answer.used_profile:
        return list(items), details
    found: Mapping[str, Sequence[float]] = {}
    try:
        ids = [item.item_id for item in items if item.sid]
        found = await model.chain.code_log_probs(query, ids, deadline)
    except Exception as error:  # whatever fails, the list is there without it
        _log.warning("no details of codes", error=repr(error))
    return [item.model_copy(update={"code_log_probs": found.get(item.item_id)}) for item in items], details


def _fired_rule(runtime: RecommenderRuntime, fired: Fired) -> FiredRule:
    return FiredRule(
        field=fired.field,
        effect=fired.effect,
        left_out=fired.left_out,
        items=[
            TouchedItem(item_id=runtime.catalog.item_ids[each.item], place=each.place, without=each.without)
            for each in fired.touched
        ],
    )
