"""Containers that fail, and callers that give up, on a real engine: whatever happens, nothing is left."""
