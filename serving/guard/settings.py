"""Settings of what guards the API."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from recsys.config import StrictConfig


class GuardSettings(StrictConfig):
    """Rate limits, foreign pages, slow clients, shutdown and the audit log."""

    requests_per_second: float | None = Field(default=100, gt=0)
    """What a client, known by its key, may ask in the long run, of all workers together; None: as much as it likes.
    Services on several machines count by themselves. Without keys nobody can be told apart, and nothing is limited."""
    burst: int = Field(default=200, ge=1)
    """What it may ask at once after a pause."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other web pages, such as `https://shop.example`, whose scripts may call the API; none by default."""
    body_timeout_s: float = Field(default=20, gt=0)
    """A request body that takes longer to arrive is refused with 408."""
    drain_s: float = Field(default=0, ge=0)
    """After SIGTERM: how long to go on answering while `/readyz` says 503, so that load balancers look elsewhere. Every
    answer then ends its connection, and the next one of the client leads to another process."""
    keep_alive_s: int = Field(default=75, ge=1)
    """How long a connection is kept on which nothing is asked. Longer than a load balancer does (60 s, most of them):
    else it sends a request at the moment at which the service closes, and its client gets a 502."""
    audit_file: Path | None = None
    """Where audit lines are appended, one JSON object a line; None: they go to the log, marked `audit`."""
    audit_secret: SecretStr | None = Field(default=None, min_length=16)
    """With it, audit lines name users by a keyed hash, which only its owner can compute; without, not at all."""
