"""The world of tests.egress_world.supervised, as a fixture."""

from tests.egress_world.supervised import world

__all__ = ["world"]
