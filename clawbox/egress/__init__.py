"""What leaves a sandbox and what comes back: shapes of credentials, rules, the sidecar."""
