"""Errors that a user can cause and fix. Each message is one line that names the field and the fix."""

from __future__ import annotations


class RecsysError(Exception):
    """Base of every error that is the input's fault; the CLI prints it in one line and exits with 1."""


class ConfigError(RecsysError):
    """A configuration value is unknown, of the wrong type, or impossible together with another."""


class DataError(RecsysError):
    """A table breaks its schema. The message holds row counts and examples."""


class AssetError(RecsysError):
    """An asset (data set, weights) could not be fetched or does not match its pinned checksum."""


class RewardError(RecsysError):
    """A reward cannot be computed, or is not one finite number a proposal. The message names the reward."""


class ArtifactError(RecsysError):
    """A stored artifact is missing, damaged, or was made by an incompatible version."""


class QualityError(RecsysError):
    """A cheaper form of a model ranks worse than its settings allow. The message holds the figures."""


class EngineError(RecsysError):
    """Processes that train together could not be started, or died more often than they are started again."""
