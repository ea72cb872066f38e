"""The world outside of a sandbox, on loopback: an authority, and servers that behave as a test says.

``async with Upstream({"/x": answers.body(b"…")}, tls=ca.server_context("api.example.com")) as upstream: …``
Nothing here sleeps: whatever waits, waits for an event that the test sets.
"""

from tests.egress_world import answers
from tests.egress_world.ca import TestCa
from tests.egress_world.upstream import Exchange, Handler, Seen, Upstream

__all__ = ["Exchange", "Handler", "Seen", "TestCa", "Upstream", "answers"]
