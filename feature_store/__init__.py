"""Users and events over the Redis protocol; what is made of them for training is in `feature_store.offline`."""

from feature_store.connection import Capabilities
from feature_store.embedded import EmbeddedServer
from feature_store.errors import InvalidEventError, StoreConfigError, StoreError, StoreUnavailableError
from feature_store.events import AppendOutcome, Event, HistoryEntry
from feature_store.items import StoredItem
from feature_store.online import OnlineStore
from feature_store.reads import UserState

__all__ = [
    "AppendOutcome",
    "Capabilities",
    "EmbeddedServer",
    "Event",
    "HistoryEntry",
    "InvalidEventError",
    "OnlineStore",
    "StoreConfigError",
    "StoreError",
    "StoreUnavailableError",
    "StoredItem",
    "UserState",
]
