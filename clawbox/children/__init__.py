"""Processes that control starts and does not trust: how they are made, confined, spoken to and ended.

Nothing here knows what a child does. A *kind* of child is an importable object (:class:`~clawbox.children.kind.Kind`).
One forkserver process for each kind has everything imported that its children need, and forks them.
"""
