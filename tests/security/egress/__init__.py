"""What leaves a sandbox: properties 1 to 60, and those of 61 to 77 that are the sidecar's."""
