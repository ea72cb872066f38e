"""The Python client of clawbox."""
