"""A client of the API for Python, blocking and asynchronous. It needs neither the model's libraries nor a GPU."""

from serving.client.asynchronous import AsyncClient
from serving.client.blocking import Client
from serving.client.errors import ApiError, ClientError, UnreachableError
from serving.client.models import (
    Event,
    EventsResult,
    HistoryItem,
    Item,
    ItemPage,
    Model,
    Neighbour,
    Neighbours,
    Recommendations,
    RecommendedItem,
    RejectedEvent,
    User,
)
from serving.client.retry import Retry

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "EventsResult",
    "HistoryItem",
    "Item",
    "ItemPage",
    "Model",
    "Neighbour",
    "Neighbours",
    "Recommendations",
    "RecommendedItem",
    "RejectedEvent",
    "Retry",
    "UnreachableError",
    "User",
]
