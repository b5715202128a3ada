"""Networks by name: built-in ones, torchvision's, timm's, and functions in your own code."""

from adjoined.models.building import build
from adjoined.models.code import build_with
from adjoined.models.listing import matching
from adjoined.models.specs import is_code, resolve
from adjoined.models.usual import usual_input

__all__ = ["build", "build_with", "is_code", "matching", "resolve", "usual_input"]
