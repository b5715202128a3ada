"""How a pair of networks is trained: one short file per method.

A new method is a class that fills in `Method`, and a line in `METHODS`.
"""

from __future__ import annotations

from adjoined.methods.adjoint import Adjoint
from adjoined.methods.base import Finished, Method, Step
from adjoined.methods.standard import Standard

METHODS: dict[str, type[Method]] = {"adjoint": Adjoint, "standard": Standard}
"""Name, as `--method` takes it -> class."""

__all__ = ["METHODS", "Adjoint", "Finished", "Method", "Standard", "Step"]
