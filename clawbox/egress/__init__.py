"""What leaves a sandbox and what comes back: decisions, which are pure, and processes that carry them out.

``supervisor`` is where control begins: it gives each sandbox a door (``sandbox_door``), behind which a
sidecar (``sidecar``, ``proxy``, ``tls``) serves it, with secrets from the ``keeper`` and connections from the
``dialer``. ``sidecar_supervisor`` keeps the sidecar running.
"""
