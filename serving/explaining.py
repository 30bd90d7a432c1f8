"""Puts reasons to the items of a response as the request wants them: none, evidence in the history, or intents."""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
import anyio.to_thread
import structlog

from serving.answers import Explain
from serving.context import ServingContext
from serving.intents import Explained, IntentReason, UserIntents
from serving.models import ServedModel
from serving.presentation import because
from serving.runtime import RecommenderRuntime
from serving.schemas.lists import RecommendedItem

_HISTORY = 50
"""The most recent items that reasons are found in: what further pages of a list remember too."""
_SHARE_OF_TIME = 0.9
"""Of what is left of a request's time that writing may take."""

_log = structlog.get_logger(__name__)


async def explained(
    context: ServingContext,
    model: ServedModel,
    items: list[RecommendedItem],
    history: Sequence[str],
    explain: Explain,
    deadline: float,
) -> list[RecommendedItem]:
    """The items with reasons of the wanted kind; nobody is refused a list because its model has no intents.

    Args:
        context: what the routes share.
        model: made the list.
        items: with the evidence that the runtime gave.
        history: item ids, oldest first.
        explain: the kind.
        deadline: by the clock of `time.monotonic`; what is not written by then is not waited for.
    """
    if explain == "none":
        return [item.model_copy(update={"reason": None}) for item in items]
    if explain == "evidence":
        return items
    catalog = model.runtime.catalog
    chosen, past = catalog.index_of([item.item_id for item in items]), catalog.index_of(history)
    past = past[past >= 0][-_HISTORY:]
    if not len(past):
        return items
    intents = model.intents
    if intents is None:
        context.path_metrics.explained({"no_table": len(items)})
        return items
    found = await anyio.to_thread.run_sync(intents.explain, chosen.tolist(), past.tolist())
    if found.missing:
        await _write(intents, found, deadline)
        found = await anyio.to_thread.run_sync(intents.explain, chosen.tolist(), past.tolist())
    context.path_metrics.explained(found.origins)
    return [
        item if reason is None else _with_intent(model.runtime, item, reason)
        for item, reason in zip(items, found.reasons, strict=True)
    ]


async def _write(intents: UserIntents, found: Explained, deadline: float) -> None:
    """Have what is missing written in the time that is left; what comes later is there for the next request."""
    within_s = (deadline - time.monotonic()) * _SHARE_OF_TIME
    try:
        with anyio.move_on_after(within_s):
            await anyio.to_thread.run_sync(intents.write, found.missing, abandon_on_cancel=True)
    except Exception as error:  # of the chat model, of the network, of the disk: the list is there without it
        _log.warning("no explanations are written", error=repr(error))


def _with_intent(runtime: RecommenderRuntime, item: RecommendedItem, reason: IntentReason) -> RecommendedItem:
    """The tag and its evidence; the text too, if one passed. An item that was pinned keeps its reason."""
    if item.reason is None or item.reason.because is None:
        return item
    update: dict[str, object] = {
        "tags": [reason.tag.name],
        "evidence": [because(runtime, past) for past in reason.evidence],
    }
    if reason.text is not None:
        update["text"] = reason.text
    return item.model_copy(update={"reason": item.reason.model_copy(update=update)})
