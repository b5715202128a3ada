"""Which versions of packages are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed, in the order asked for.

    A package installed under the name of another build, such as onnxruntime-gpu, is left out, too.

    Example:
        >>> versions("torch", "no-such-package").keys()
        dict_keys(['torch'])
    """
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
