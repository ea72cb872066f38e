"""Whole programs, each in a hardened container without a network."""
