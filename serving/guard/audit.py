"""The record of who administered the service, changed items and erased what: one line a call, nobody's id in clear."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.errors import ConfigError
from serving.guard.middleware import client_of
from serving.guard.roles import role_of

_CHANGE_ITEMS = frozenset({"put_item", "import_items"})

_log = structlog.get_logger(__name__)


class AuditLog:
    """Appends lines to a file, or to the log.

    Args:
        path: the file; None: the log, under the event `audit`.
        secret: of the keyed hash (HMAC-SHA256) that stands for the subject of a call, such as the user who was erased:
            its owner can find the lines about a user, and nobody else can find users in the lines. None: lines name
            no subject.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | None, secret: SecretStr | None) -> None:
        self._path = path
        self._secret = None if secret is None else secret.get_secret_value().encode()
        if path is not None:
            self._append(path, b"")

    def record(
        self, *, operation: str, client: str | None, status: int | None, request_id: str, subject: str | None
    ) -> None:
        """Write one line; a file that cannot be written any more costs the line's place, not the line."""
        line: dict[str, str | int | None] = {
            "timestamp": datetime.now(UTC).isoformat(),
            "operation": operation,
            "client": client,
            "status": status,
            "request_id": request_id,
            "subject": self.name_of(subject),
        }
        if self._path is not None:
            try:
                self._append(self._path, json.dumps(line).encode() + b"\n")
            except ConfigError as error:
                _log.error("audit file not written", error=str(error))
            else:
                return
        _log.info("audit", **line)

    def name_of(self, subject: str | None) -> str | None:
        """What stands for a subject in the lines: 32 hexadecimal digits; None without a secret."""
        if subject is None or self._secret is None:
            return None
        return hmac.digest(self._secret, subject.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        try:
            # One write to a file opened for appending: lines of several processes do not mix.
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise ConfigError(f"audit_file: {path} cannot be written: {error.strerror}") from error


class AuditMiddleware:
    """Records every call of an administrator's operation, every change of items and every DELETE, refused ones too."""

    def __init__(self, app: ASGIApp, *, audit: AuditLog) -> None:
        self.app = app
        self.audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # The router has put the route into the scope.
            operation = getattr(scope.get("route"), "operation_id", None)
            if operation is not None and (
                scope["method"] == "DELETE" or operation in _CHANGE_ITEMS or role_of(operation) == "admin"
            ):
                client = client_of(scope)
                self.audit.record(
                    operation=operation,
                    client=None if client is None else client.name,
                    status=status,
                    request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
                    subject=_subject(scope.get("path_params", {})),
                )


def _subject(path_parameters: Mapping[str, object]) -> str | None:
    """What the path of the call names: a user, a model."""
    return " ".join(str(value) for value in path_parameters.values()) or None
