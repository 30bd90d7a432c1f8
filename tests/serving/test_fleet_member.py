"""A process of the service whose supervisor is gone."""

from __future__ import annotations

import asyncio
import socket

import pytest

from serving.metrics import Metrics
from serving.models import ModelError
from serving.workers.member import FleetMember


def test_what_is_asked_of_a_supervisor_that_is_gone_is_refused_at_once() -> None:
    async def run() -> None:
        theirs, ours = socket.socketpair()
        gone = asyncio.Event()
        member = FleetMember(ours, "0", Metrics(None), None, gone.set)
        await member.start()
        asked = asyncio.create_task(member.render_metrics())
        await asyncio.sleep(0)
        theirs.close()
        await gone.wait()
        with pytest.raises(ModelError, match="is ending"):
            await asked
        with pytest.raises(ModelError, match="is ending"):
            await asyncio.wait_for(member.render_metrics(), 20)

    asyncio.run(run())
