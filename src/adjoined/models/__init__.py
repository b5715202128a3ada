"""Networks by name: built-in ones, torchvision's, timm's, and functions in your own code."""

from adjoined.models.building import build
from adjoined.models.specs import available, is_code, resolve
from adjoined.models.usual import usual_input

__all__ = ["available", "build", "is_code", "resolve", "usual_input"]
