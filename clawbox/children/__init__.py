"""Processes that control starts and does not trust: how they are made, confined, spoken to and ended.

Nothing here knows what a child does. A kind of child is an importable object (:mod:`clawbox.children.kind`).
One forkserver process for each kind has imported all that its children need, and forks them.
"""
