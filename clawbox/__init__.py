"""clawbox: runs what AI agents want to run, without trusting it."""

from importlib.metadata import version

__version__ = version("clawbox")
