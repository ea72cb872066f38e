"""What the server remembers over restarts: containers, and request ids with their results."""

from clawbox.store.containers import ContainerRow, ContainerRows
from clawbox.store.location import sqlite_url, state_url
from clawbox.store.request_ids import RequestIds, Slot
from clawbox.store.store import Store, StoreStatus

__all__ = [
    "ContainerRow",
    "ContainerRows",
    "RequestIds",
    "Slot",
    "Store",
    "StoreStatus",
    "sqlite_url",
    "state_url",
]
