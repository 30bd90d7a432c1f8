"""A client of the API for Python, blocking and asynchronous. It needs neither the model's libraries nor a GPU."""

from serving.client.asynchronous import AsyncClient
from serving.client.blocking import Client
from serving.client.errors import ApiError, ClientError, UnreachableError
from serving.client.models import (
    Boost,
    Event,
    EventsResult,
    HistoryItem,
    Interests,
    Item,
    ItemChange,
    ItemLineResult,
    ItemPage,
    ItemsResult,
    Model,
    Neighbour,
    Neighbours,
    NewItem,
    Pin,
    Reason,
    Recommendations,
    RecommendedItem,
    RejectedEvent,
    Rules,
    User,
)
from serving.client.retry import Retry

__all__ = [
    "ApiError",
    "AsyncClient",
    "Boost",
    "Client",
    "ClientError",
    "Event",
    "EventsResult",
    "HistoryItem",
    "Interests",
    "Item",
    "ItemChange",
    "ItemLineResult",
    "ItemPage",
    "ItemsResult",
    "Model",
    "Neighbour",
    "Neighbours",
    "NewItem",
    "Pin",
    "Reason",
    "Recommendations",
    "RecommendedItem",
    "RejectedEvent",
    "Retry",
    "Rules",
    "UnreachableError",
    "User",
]
