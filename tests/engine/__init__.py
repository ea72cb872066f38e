"""A Docker engine for tests: the one that answers here, else one of their own; and images of local parts."""

from tests.engine.api import EngineApi, EngineError
from tests.engine.images import ImageMaker, make_image
from tests.engine.private import EngineMissingError, PrivateEngine

__all__ = ["EngineApi", "EngineError", "EngineMissingError", "ImageMaker", "PrivateEngine", "make_image"]
