"""`PUT` and `DELETE /v1/items/{item_id}`, and `POST /v1/items:bulk`: the catalogue, changed while it is served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

import polars as pl
from fastapi import APIRouter, Path, Request
from pydantic import ValidationError

from feature_store.events import MAX_ID_LENGTH
from serving.context import Context, ServingContext
from serving.overlay import ItemFacts
from serving.presentation import SUMMARY_COLUMNS
from serving.problems import ProblemError, invalid_fields, responses, unknown_item
from serving.runtime import RecommenderRuntime
from serving.schemas.items import MAX_LINES, ItemChange, ItemIn, ItemLine, ItemLineResult, ItemsResponse

router = APIRouter(prefix="/v1", tags=["catalogue"])

ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, examples=["50"])]

_LINES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "One `ItemLine` as JSON a line."},
                "example": '{"item_id": "50", "title": "Star Wars (1977)", "categories": ["Sci-Fi"]}\n',
            }
        },
    }
}


class _UnfitError(ValueError):
    """What was put is no item of this catalogue; names the field and the fix."""


@router.put("/items/{item_id:path}", operation_id="put_item", responses=responses(400, 409, 413, 422, 503))
async def put_item(item_id: ItemId, body: ItemIn, context: Context) -> ItemChange:
    """Add an item, or replace all that is known of it. Acknowledged means durable; every process follows in a second.

    A new item is found and listed at once, and generated as soon as it has a semantic ID; `status` says which. An item
    that is there keeps its semantic ID, whatever changes. One that was removed is there again.
    """
    runtime = context.runtime
    try:
        text = _text(runtime, item_id, body)
    except _UnfitError as error:
        raise ProblemError(422, str(error), field=str(error).partition(":")[0]) from error
    is_known = runtime.find(item_id) is not None
    changes = await context.on_store(lambda: context.store.items.put({item_id: text}))
    await context.catalogue.refresh()
    change = _change(context, item_id, is_known=is_known, is_new=changes.changed[0])
    if isinstance(change, str):
        raise ProblemError(409, change, field="item_id")
    return change


@router.delete("/items/{item_id:path}", operation_id="delete_item", responses=responses(404, 422, 503))
async def delete_item(item_id: ItemId, context: Context) -> ItemChange:
    """Take an item out of every list and search, in every process within a second. Events about it are accepted still,
    and `PUT` brings it back."""
    if context.runtime.catalog.index_of([item_id])[0] < 0:
        await context.catalogue.refresh()  # another process may have added it this moment
        if context.runtime.catalog.index_of([item_id])[0] < 0:
            raise unknown_item(item_id)
    changes = await context.on_store(lambda: context.store.items.remove([item_id]))
    await context.catalogue.refresh()
    return ItemChange(
        item_id=item_id,
        outcome="removed" if changes.changed[0] else "unchanged",
        status="removed",
        catalog_version=context.catalogue.version,
    )


@router.post(
    "/items:bulk",
    operation_id="import_items",
    responses=responses(400, 413, 422, 503),
    openapi_extra=_LINES,
)
async def import_items(request: Request, context: Context) -> ItemsResponse:
    """Add or replace many items, one JSON object a line (NDJSON), each as `PUT` does it. Lines are judged one by one:
    a bad one does not keep the others out. Sending them again changes nothing; of lines of one item the last counts."""
    lines = [(number, line) for number, line in enumerate((await request.body()).split(b"\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= MAX_LINES:
        raise ProblemError(
            422, f"body: must have 1 to {MAX_LINES} lines of one item each, got {len(lines)}", field="body"
        )
    runtime = context.runtime
    texts: dict[str, str] = {}
    ids: dict[int, str] = {}
    rejected: dict[int, tuple[str | None, str]] = {}
    for number, line in lines:
        try:
            item = ItemLine.model_validate_json(line)
        except ValidationError as error:
            first = invalid_fields(error.errors(include_url=False))[0]
            rejected[number] = (None, f"{first.field}: {first.message}")
            continue
        try:
            texts[item.item_id] = _text(runtime, item.item_id, item)
        except _UnfitError as error:
            rejected[number] = (item.item_id, str(error))
        else:
            ids[number] = item.item_id
    known = {item_id: runtime.find(item_id) is not None for item_id in texts}
    changes = await context.on_store(lambda: context.store.items.put(texts))
    await context.catalogue.refresh()
    is_new = dict(zip(texts, changes.changed, strict=True))
    found: dict[int, ItemChange] = {}
    for number, item_id in ids.items():
        change = _change(context, item_id, is_known=known[item_id], is_new=is_new[item_id])
        if isinstance(change, str):
            rejected[number] = (item_id, change)
        else:
            found[number] = change
    return _counted(context.catalogue.version, [number for number, _ in lines], found, rejected)


def _text(runtime: RecommenderRuntime, item_id: str, item: ItemIn) -> str:
    """The item as the store keeps it: equal items are equal texts.

    Raises:
        _UnfitError: the catalogue has no such column, or the model takes no new items.
    """
    schema = runtime.catalog.frame.schema
    for name, value in item.attributes.items():
        if name in SUMMARY_COLUMNS or name not in schema:
            columns = ", ".join(column for column in schema if column not in SUMMARY_COLUMNS) or "no further ones"
            raise _UnfitError(f"attributes.{name}: the catalogue has no such column; it has {columns}")
        is_list = schema[name] == pl.List(pl.String())
        if value is not None and isinstance(value, list) != is_list:
            raise _UnfitError(f"attributes.{name}: must be {'a list of texts' if is_list else 'a text'}")
    if runtime.placer is None and runtime.catalog.index_of([item_id])[0] < 0:
        raise _UnfitError(
            f"item_id: the catalogue has no item {item_id!r}, and this model takes no new ones; serve its bundle "
            "without --onnx"
        )
    return ItemFacts(
        title=item.title,
        categories=tuple(item.categories),
        attributes={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in sorted(item.attributes.items())
            if value is not None
        },
    ).model_dump_json()


def _change(context: ServingContext, item_id: str, *, is_known: bool, is_new: bool) -> ItemChange | str:
    """What became of an item that was put, or why nothing did."""
    runtime = context.runtime
    (item,) = runtime.catalog.index_of([item_id]).tolist()
    if item < 0:
        return f"item_id: no semantic ID is left near {item_id!r}; it is kept for the next model, train that with it"
    outcome: Literal["created", "changed", "unchanged"] = "changed" if is_known else "created"
    return ItemChange(
        item_id=item_id,
        outcome=outcome if is_new else "unchanged",
        status=runtime.status(item),
        catalog_version=runtime.catalog_version,
    )


def _counted(
    version: int, numbers: list[int], found: Mapping[int, ItemChange], rejected: Mapping[int, tuple[str | None, str]]
) -> ItemsResponse:
    results = []
    for number in numbers:
        if number in rejected:
            item_id, reason = rejected[number]
            results.append(ItemLineResult(line=number, item_id=item_id, outcome="rejected", status=None, reason=reason))
            continue
        change = found[number]
        assert change.outcome != "removed"
        results.append(
            ItemLineResult(
                line=number, item_id=change.item_id, outcome=change.outcome, status=change.status, reason=None
            )
        )
    counts = Counter(result.outcome for result in results)
    return ItemsResponse(
        catalog_version=version,
        created=counts["created"],
        changed=counts["changed"],
        unchanged=counts["unchanged"],
        rejected=counts["rejected"],
        results=results,
    )
