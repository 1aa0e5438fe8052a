"""Files of plug-ins: loading, and the plug-in that each registered name comes from."""

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
    """A file that was loaded."""

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


LOADED: dict[Path, Plugin] = {}
"""The plug-ins that are loaded, by path."""
ORIGIN: dict[tuple[str, str], Plugin] = {}
"""Where what a plug-in registered comes from, by kind and name."""
LOADING: list[Plugin] = []


def check_name(kind: str, name: object) -> None:
    """Raise ValueError for what is no name, as where a decorator is used without its arguments."""
    if not isinstance(name, str):
        raise ValueError(
            f"the decorator of a {kind} needs its name: @plugin.{kind.replace(' ', '_')}('name')"
        )
    if not NAME.fullmatch(name):
        raise ValueError(f"the name of a {kind} must match {NAME.pattern}, got {name!r}")


def guarded(kind: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its exceptions as one line that says where they come from."""

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
    """Return the function with its result checked."""

    @wraps(function)
    def make(*args: Any) -> Any:
        made = function(*args)
        if not (hasattr(made, "init") and hasattr(made, "step")):
            raise TypeError(f"the function must return an optimizer, got {made!r}")
        return made

    return make


def of_each_example(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function for K trials, with its result checked: (K, N, …), (N, …) → (K, N)."""

    @wraps(function)
    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        found = torch.stack([function(own, targets) for own in outputs.unbind(0)])
        if found.shape != outputs.shape[:2]:
            raise ValueError(f"must return one value an example, (N,), got {tuple(found.shape[1:])}")
        return found

    return values


def line_of(error: BaseException, path: Path) -> str:
    """Return `:N`, the last line of a file that an exception went through."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f":{own[-1].lineno}" if own else ""


def enter(kind: str, name: str, known: Mapping[str, object]) -> None:
    """Note where a name comes from; raise ValueError for one that is taken."""
    if name in known:
        raise ValueError(f"there is a {kind} {name!r} already: choose another name")
    if LOADING:
        ORIGIN[kind, name] = LOADING[-1]


def load(paths: Iterable[Path]) -> None:
    """Run the plug-ins that are not loaded yet, in this order.

    Raises:
        InputError: a file that cannot be read, or fails; the line says where.
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
    """Run plug-ins as they were read: in another process too, whatever has become of their files since."""
    for plugin in plugins:
        if plugin.path not in LOADED:
            _run(plugin)
            LOADED[plugin.path] = plugin


def _run(plugin: Plugin) -> None:
    name = f"ahf_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', plugin.path.stem)}_{plugin.digest[:8]}"
    module = ModuleType(name)
    module.__file__ = str(plugin.path)
    sys.modules[name] = module  # where dataclasses and pickle look for their module
    LOADING.append(plugin)
    try:
        # Not by an import, which would read the file once more, or what it was compiled to before.
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
    """Return the SHA-256 of the plug-ins that (kind, name) pairs come from, by `kind name`."""
    return {f"{kind} {name}": ORIGIN[kind, name].digest for kind, name in names if (kind, name) in ORIGIN}
