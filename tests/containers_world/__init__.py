"""A server with containers on a real engine, and what would be left of them."""

from tests.containers_world.leftovers import Leftovers
from tests.containers_world.server import SETTINGS, containers_server, settings

__all__ = ["SETTINGS", "Leftovers", "containers_server", "settings"]
