"""Loading of plug-ins, the plug-in behind each registered name, and checks of its functions."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ahf_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    """A plug-in: its path, and its content when it was read."""

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


LOADED: dict[Path, Plugin] = {}
"""The loaded plug-ins by path."""
ORIGIN: dict[tuple[str, str], Plugin] = {}
"""The plug-in that registered a name, by kind and name."""
LOADING: list[Plugin] = []
"""The plug-ins that are running now, the innermost last."""


def check_name(kind: str, name: object) -> None:
    """Raise ValueError for a value that is no name, such as the function below `@plugin.model`."""
    if not isinstance(name, str):
        raise ValueError(
            f"the decorator of a {kind} needs its name: @plugin.{kind.replace(' ', '_')}('name')"
        )
    if not NAME.fullmatch(name):
        raise ValueError(f"the name of a {kind} must match {NAME.pattern}, got {name!r}")


def guarded(kind: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its exceptions as one line: file, line, kind, name and error."""

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            plugin = ORIGIN.get((kind, name))
            where = "" if plugin is None else f"{plugin.path.name}{line_of(error, plugin.path)}: "
            raise InputError(f"{where}{kind} {name}: {type(error).__name__}: {error}") from error

    return call


def optimizer_made(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a recipe with a check of its result: it must be an optimizer."""

    @wraps(function)
    def make(*args: Any) -> Any:
        made = function(*args)
        if not (hasattr(made, "init") and hasattr(made, "step")):
            raise TypeError(f"the function must return an optimizer, got {made!r}")
        return made

    return make


def of_each_example(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a metric for K trials, with a check of its shape: (K, N, …), (N, …) → (K, N)."""

    @wraps(function)
    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        found = torch.stack([function(own, targets) for own in outputs.unbind(0)])
        if found.shape != outputs.shape[:2]:
            raise ValueError(f"must return one value an example, (N,), got {tuple(found.shape[1:])}")
        return found

    return values


def line_of(error: BaseException, path: Path) -> str:
    """Return `:N`, the last line of a file in the traceback of an exception; "" if it is not there."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f":{own[-1].lineno}" if own else ""


def enter(kind: str, name: str, known: Mapping[str, object]) -> None:
    """Record the plug-in of a new name; raises ValueError for a taken name."""
    if name in known:
        raise ValueError(f"there is a {kind} {name!r} already: choose another name")
    if LOADING:
        ORIGIN[kind, name] = LOADING[-1]


def load(paths: Iterable[Path]) -> None:
    """Run the plug-ins that are not loaded yet, in the given order.

    Raises:
        InputError: a file that cannot be read, or that fails; the message has its line.
    """
    for path in paths:
        try:
            plugin = Plugin(path.resolve(strict=True), path.read_bytes())
        except OSError as error:
            raise InputError(f"--plugin {path}: cannot be read: {error.strerror or error}") from None
        if path.suffix != ".py":
            raise InputError(f"--plugin must be a Python file, NAME.py, got {str(path)!r}")
        run([plugin])


def run(plugins: Iterable[Plugin]) -> None:
    """Run plug-ins from the content that was read, so that another process runs the same code."""
    for plugin in plugins:
        if plugin.path not in LOADED:
            _run(plugin)
            LOADED[plugin.path] = plugin


def _run(plugin: Plugin) -> None:
    name = f"ahf_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', plugin.path.stem)}_{plugin.digest[:8]}"
    module = ModuleType(name)
    module.__file__ = str(plugin.path)
    sys.modules[name] = module  # dataclasses and pickle look up their module here
    LOADING.append(plugin)
    try:
        # Not by an import, which would read the file again, or an older compiled file.
        exec(compile(plugin.content, str(plugin.path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line, said = line_of(error, plugin.path), str(error)
        if isinstance(error, SyntaxError):
            line, said = f":{error.lineno}", error.msg
        raise InputError(f"--plugin {plugin.path}{line}: {type(error).__name__}: {said}") from error
    finally:
        LOADING.pop()


def origins(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of the plug-in behind each pair (kind, name), by `kind name`."""
    return {f"{kind} {name}": ORIGIN[kind, name].digest for kind, name in names if (kind, name) in ORIGIN}
