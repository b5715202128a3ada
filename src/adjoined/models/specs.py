"""The grammar of model names. Nothing here builds a network or runs user code.

resnet56                     the built-in network of this name, or else torchvision's, or else timm's
adjoined:NAME  torchvision:NAME  timm:NAME
FILE.py:FUNCTION  package.module:FUNCTION     a function in the user's code that returns a torch.nn.Module
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from adjoined.errors import AdjoinedError
from adjoined.models import libraries, own

LIBRARIES: dict[str, Callable[[], list[str]]] = {
    "adjoined": own.names,
    "torchvision": lambda: [*libraries.torchvision_names(), *libraries.torchvision_segmentation_names()],
    "timm": libraries.timm_names,
}
"""Library -> a function that returns the names of its networks, in the order in which a bare name is looked up."""


def is_code(spec: str) -> bool:
    """Return whether building this model imports a file or package of the user and so runs user code.

    Example:
        >>> is_code("net.py:make"), is_code("package.module:make"), is_code("timm:resnet18"), is_code("resnet18")
        (True, True, False, False)
    """
    place, _, function = spec.rpartition(":")
    named = place.endswith(".py") or (bool(place) and all(part.isidentifier() for part in place.split(".")))
    return named and place not in LIBRARIES and function.isidentifier()


def resolve(spec: str) -> str:
    """Return the canonical form of a model's name, which means the same model everywhere.

    No user code is imported: for `FILE.py:FUNCTION` only the file's existence is checked, for
    `package.module:FUNCTION` nothing.

    Returns:
        `LIBRARY:NAME`, or `/absolute/FILE.py:FUNCTION`, or `package.module:FUNCTION`.

    Raises:
        AdjoinedError: no library knows the name (the error lists similar ones), the file is missing, or the name is
            malformed.

    Example:
        >>> resolve("resnet20"), resolve("resnet50")
        ('adjoined:resnet20', 'torchvision:resnet50')
    """
    if is_code(spec):
        return _resolve_code(spec)
    library, _, name = spec.partition(":") if ":" in spec else ("", "", spec)
    if (library and library not in LIBRARIES) or spec.endswith(".py"):
        raise AdjoinedError(
            "malformed model name",
            where=f"model {spec!r}",
            expected="NAME, timm:NAME, torchvision:NAME, adjoined:NAME, FILE.py:FUNCTION or package.module:FUNCTION",
        )
    searched = [library] if library else list(LIBRARIES)
    for each in searched:
        if _knows(each, name):
            return f"{each}:{name}"
    alike = near(name, searched)
    raise AdjoinedError(
        "unknown model",
        where=f"model {spec!r}",
        expected=f"a name of {', '.join(searched)}" + (f", such as {', '.join(alike)}" if alike else ""),
        fix="`adjoined models PATTERN` lists names. For your own model write FILE.py:FUNCTION.",
    )


def _knows(library: str, name: str) -> bool:
    if library == "adjoined":
        return own.find(name) is not None
    if library == "timm":
        return name in (libraries.timm_weights() if "." in name else libraries.timm_names())
    return name in LIBRARIES[library]()


def _resolve_code(spec: str) -> str:
    place, _, function = spec.rpartition(":")
    if not place.endswith(".py"):
        return spec
    path = Path(os.path.expanduser(place)).resolve()
    if not path.is_file():
        raise AdjoinedError(
            "the file of the model is missing",
            where=f"model {spec!r}",
            expected=f"a Python file {path}",
            fix="Give a path relative to the current folder, or an absolute one.",
        )
    return f"{path}:{function}"


def near(name: str, searched: Iterable[str] = LIBRARIES) -> list[str]:
    """Return the full names of up to four networks with the most similar names.

    Example:
        >>> near("ResNt50")[0]
        'torchvision:resnet50'
    """
    # Two libraries may share a name; dict keeps the first, in search order.
    names = {each: f"{library}:{each}" for library in reversed(list(searched)) for each in LIBRARIES[library]()}
    return [names[each] for each in difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.5)]
