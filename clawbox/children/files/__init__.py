"""File operations inside a sandbox's folder, each by a child of its own that is the sandbox's user there.

Control (:mod:`clawbox.children.files.folder`) never opens a path of a sandbox. The child's root is the
folder, it has no capability, and resolves paths with openat2(2) (docs/security.md, 81).
"""
