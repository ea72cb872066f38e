"""Processes that control starts and does not trust: how they are made, confined, spoken to and ended.

Nothing here but :mod:`clawbox.children.files` knows what a child does. A kind of child is an importable
object (:mod:`clawbox.children.kind`).
A forkserver process has imported all that the children of one or several kinds need, and forks them.
"""
