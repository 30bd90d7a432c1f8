"""Errors of the feature store; each message is one line that says what to do."""

from __future__ import annotations


class StoreError(Exception):
    """Base of every error of the feature store."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or does not answer; nothing was acknowledged, and a retry is safe."""


class StoreConfigError(StoreError):
    """The store cannot be used as asked: a bad URL, an unusable data directory, missing permissions."""


class InvalidEventError(StoreError, ValueError):
    """A field of an event is empty, too long or of the wrong form."""
