"""The security properties, each test named by its number (docs/security.md)."""
