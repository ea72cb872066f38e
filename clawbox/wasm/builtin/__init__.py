"""The tools that ship with clawbox: ``NAME.wasm`` and ``NAME.json``, built here by ``make setup``."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where they are."""
