"""The only process with a network: resolves, checks and connects by grants that control told it (61).

Sidecars ask it over a socket pair each (:mod:`client`) and get connected sockets, or a reason.
"""
