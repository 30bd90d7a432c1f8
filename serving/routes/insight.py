"""What the page shows of the service's work: its traffic now, and what came of its experiments."""

from __future__ import annotations

import anyio.to_thread
from fastapi import APIRouter

from serving.context import Context
from serving.problems import responses
from serving.results import ExperimentsOut
from serving.traffic import Traffic, traffic_of

router = APIRouter(prefix="/v1", tags=["operations"])


@router.get("/traffic", operation_id="get_traffic", responses=responses(503))
async def get_traffic(context: Context) -> Traffic:
    """What the service has done since its start: `/metrics` as JSON, without what only machines read."""
    return traffic_of(await context.fleet.collect_metrics())


@router.get("/experiments", operation_id="get_experiments")
async def get_experiments(context: Context) -> ExperimentsOut:
    """The experiments that run: users and lists of each variant, the share of lists that led to an event, how far it
    is from the control's with a 95 % interval over users, and whether the users fit the variants' shares. Counted in
    the offline store, a few seconds behind."""
    return await anyio.to_thread.run_sync(context.results.read)
