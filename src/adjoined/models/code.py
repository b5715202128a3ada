"""Networks built by functions in the user's code."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.slicing import unwrap


def build_from_code(spec: str, *, offered: Mapping[str, Any], pretrained: bool, options: Mapping) -> nn.Module:
    """Call the function named by `spec` and return its network.

    Args:
        spec: `FILE.py:FUNCTION` or `package.module:FUNCTION`.
        offered: num_classes, in_channels, image_size; each is passed if the function has such a parameter. A function
            with **kwargs always gets num_classes, but not the others.
        pretrained: passed if True; the function must then have such a parameter.
        options: further arguments, all passed.

    Raises:
        AdjoinedError: file, module or function are missing; an argument is not accepted; the function raised, or did
            not return a torch.nn.Module.
    """
    place, _, function_name = spec.rpartition(":")
    folder = Path(place).parent if place.endswith(".py") else Path.cwd()
    # During the call as well: functions may import other modules. What they print is not part of the command's output.
    # Paths of the run and of the data may be relative to the current folder, which the code may change.
    with _importable(folder), contextlib.chdir(Path.cwd()), contextlib.redirect_stdout(sys.stderr):
        function = _load_function(spec, place, function_name)
        return _call(function, f"model {spec!r}", offered, pretrained=pretrained, options=options)


def build_with(function: Callable[..., object], *, offered: Mapping[str, Any], options: Mapping) -> nn.Module:
    """Call a function and return its network; it gets the arguments and options that it has parameters for.

    Raises:
        AdjoinedError: the function raised, or did not return a torch.nn.Module.

    Example:
        >>> build_with(lambda num_classes: nn.Linear(4, num_classes), offered={"num_classes": 3}, options={})
        Linear(in_features=4, out_features=3, bias=True)
    """
    known = {name: value for name, value in options.items() if name in inspect.signature(function).parameters}
    return _call(function, "model", offered, pretrained=False, options=known)


def _call(
    function: Callable[..., object], where: str, offered: Mapping[str, Any], *, pretrained: bool, options: Mapping
) -> nn.Module:
    arguments = _arguments(where, function, offered, pretrained=pretrained, options=options)
    try:
        model = function(**arguments)
    except (AdjoinedError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit, too: the command would end as if it had done its work
        raise AdjoinedError(
            f"the function raised {type(error).__name__}: {error}",
            where=where,
            got=f"{_last_line(error)}, called with {arguments}",
        ) from error
    if not isinstance(model, nn.Module):
        raise AdjoinedError(
            "the function did not return a network",
            where=where,
            expected="a torch.nn.Module",
            got=type(model).__name__,
        )
    return unwrap(model)


def _load_function(spec: str, place: str, name: str) -> Callable[..., object]:
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        ended = isinstance(error, SystemExit)
        works = f"Make sure that `import {Path(place).stem}` works in this environment, from this folder."
        raise AdjoinedError(
            f"the import raised {type(error).__name__}: {error}",
            where=f"model {spec!r}",
            got=_last_line(error),
            fix="Put the code that runs as a script under `if __name__ == '__main__':`." if ended else works,
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        near = difflib.get_close_matches(name, functions, n=3, cutoff=0.4) or functions[:5]
        raise AdjoinedError(
            "no such function",
            where=f"model {spec!r}",
            expected=f"a function {name} in {place}",
            got=", ".join(near) or "no functions",
        )
    return function


def _load_file(path: Path) -> ModuleType:
    # The name includes path and content, so building twice gives the same classes, and an edited file gives new ones.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _arguments(
    where: str, function: Callable, offered: Mapping[str, Any], *, pretrained: bool, options: Mapping
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if pretrained and "pretrained" not in named:
        raise AdjoinedError(
            "the function does not offer pretrained weights",
            where=where,
            expected="a parameter `pretrained`",
            got=f"parameters {', '.join(named) or 'none'}",
        )
    unknown = [] if takes_any else sorted(set(options) - named)
    if unknown:
        raise AdjoinedError(
            "the function has no such option",
            where=f"option {unknown[0]} of {where}",
            expected=f"one of {', '.join(sorted(named - set(offered))) or 'none'}",
        )
    passed = {name: value for name, value in offered.items() if name in named and value is not None}
    if takes_any:
        passed.setdefault("num_classes", offered["num_classes"])
    return {**passed, **({"pretrained": True} if pretrained else {}), **options}


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Make the modules in this folder importable, as for a script in it."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it itself
            sys.path.remove(entry)


def _last_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {error.filename}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {frame.lineno} of {frame.filename}"
