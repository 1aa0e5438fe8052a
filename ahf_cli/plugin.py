"""Recipes, models, data sets and losses of the user's own, registered by decorators in a file of theirs.

    ahf search --plugin mine.py --recipe my_recipe -o task.model=my_model

A plug-in is Python code, run with the rights of who names it: only `--plugin` loads one, never a
configuration or a study.  A study keeps a copy of the plug-ins that it used, and their SHA-256 belong to its
identity, so that results of two versions do not mix.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from ahf_cli.errors import InputError
from ahf_cli.recipes.builtin import RECIPES, find_recipe
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Hyperparameter, Range, nearest
from ahf_cli.recipes.parts import SLOTS, Part
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import CHOICES, Whole
from ahf_cli.tasks.catalogue import LOSSES, MODELS, Loss
from ahf_cli.tasks.datasets import DATA_SETS, DataSet
from ahf_cli.tasks.metrics import MEASURED, MEASURES, Measure, Metric

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Hyperparameter",
    "Range",
    "data_set",
    "hyperparameter",
    "load",
    "loss",
    "metric",
    "model",
    "part",
    "recipe",
]

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
_ORIGIN: dict[tuple[str, str], Plugin] = {}
"""Where what a plug-in registered comes from, by kind and name."""
_loading: list[Plugin] = []


def model(name: str) -> Callable[[F], F]:
    """Register a function (shape of an input, number of outputs) → `nn.Module` as `task.model`.

    The module maps (N, *shape) to logits (N, classes), or to numbers of the shape of the targets.  Its own
    weights are not used: a trial draws them from its seed, matrices and kernels uniform by Glorot, vectors 0,
    scales of normalisation layers 1.  It runs in evaluation mode.
    """
    _named("model", name)

    def register(function: F) -> F:
        _enter("model", name, MODELS)
        MODELS[name] = _guarded("model", name, function)
        return function

    return register


def data_set(
    name: str,
    *,
    shape: tuple[int, ...],
    training: int,
    classes: int | None = None,
    target: tuple[int, ...] | None = None,
    metrics: Sequence[str] | None = None,
) -> Callable[[F], F]:
    """Register a function () → (inputs, targets, test inputs, test targets) as `task.data`.

    The function returns NumPy arrays: inputs (N, *shape) of bytes, which are divided by 255, or of floating
    point numbers, which are taken as they are; targets (N,) of integers in [0, classes), or floating point
    numbers (N, *target).  It must give the same arrays at each call, since each process calls it.  A sixth of
    the training examples validates.

    Args:
        name: of the data set.
        shape: of an input.
        training: number of training examples, N ≥ 6.
        classes: number of classes, ≥ 2; or
        target: shape of a target of numbers; the model then has as many outputs as it has entries.
        metrics: names of the metrics beside the loss; the last is the headline, by which recipes are judged.
            By default accuracy for classes, and none for numbers: there the test loss is the headline.
    """
    _named("data set", name)
    head = f"data set {name!r}"
    if (classes is None) == (target is None):
        raise ValueError(f"{head} needs classes or target, one of both")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 2):
        raise ValueError(f"{head}: classes must be an integer ≥ 2, got {classes!r}")
    if isinstance(training, bool) or not isinstance(training, int) or training < 6:
        raise ValueError(f"{head}: training must be an integer ≥ 6, got {training!r}")
    for key, sides in (("shape", shape), ("target", target or ())):
        if not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ValueError(f"{head}: {key} must be integers ≥ 1, got {sides!r}")
    own = tuple(metrics) if metrics is not None else (() if classes is None else ("accuracy",))
    for key in own:
        if key not in MEASURES:
            raise ValueError(f"{head}: metrics: no metric {key!r}{nearest(key, MEASURES)}")
        if MEASURES[key].classes != (classes is not None):
            kind = "classes" if MEASURES[key].classes else "numbers"
            raise ValueError(f"{head}: metrics: {key} is for targets that are {kind}")

    def register(function: F) -> F:
        _enter("data set", name, DATA_SETS)
        made = _guarded("data set", name, function)
        DATA_SETS[name] = DataSet(
            name, name, classes, tuple(shape), training, lambda folder: made(),
            target=tuple(target or ()), metrics=own,
        )  # fmt: skip
        return function

    return register


def metric(
    name: str,
    *,
    label: str,
    better: str,
    unit: str,
    short: str,
    top: float = math.inf,
    classes: bool = False,
    baseline: Callable[[int], float] | None = None,
) -> Callable[[F], F]:
    """Register a function (outputs (N, …), targets (N, …)) → one value an example, (N,), as a metric.

    The metric is the mean over a set, ≥ 0; columns are named `train_NAME`, `validation_NAME`, `test_NAME`.

    Args:
        name: small letters, digits and `_`, beginning with a letter.
        label: in words, as in `test LABEL`.
        better: `lower` or `higher`.
        unit: for the axis of a large figure.
        short: the unit in one word.
        top: largest possible value; infinite by default.
        classes: whether targets are classes; else they are numbers.
        baseline: number of classes → value of guessing, which a diverged trial counts with.

    Raises:
        ValueError: a field that is wrong, by its name and rule.
    """
    _named("metric", name)
    head = f"metric {name!r}"
    if not MEASURED.fullmatch(f"test_{name}") or name == "loss":
        raise ValueError(f"{head}: the name must match [a-z][a-z0-9_]* and not be loss")
    for key, text in (("label", label), ("unit", unit), ("short", short)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{head}: {key} must be words, got {text!r}")
    if better not in ("lower", "higher"):
        raise ValueError(f"{head}: better must be lower or higher, got {better!r}")
    if not isinstance(top, int | float) or not top > 0:
        raise ValueError(f"{head}: top must be > 0, got {top!r}")
    if baseline is not None and not classes:
        raise ValueError(f"{head}: baseline needs classes: guessing has a value among classes only")

    def register(function: F) -> F:
        _enter("metric", name, MEASURES)
        own = _guarded("metric", name, _of_each_example(function))
        declared = Metric(name, label, cast(Literal["lower", "higher"], better), unit, short, float(top))
        counted = None if baseline is None else _guarded("metric", name, baseline)
        MEASURES[name] = Measure(declared, own, counted, classes)
        return function

    return register


def _of_each_example(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function for K trials, with its result checked: (K, N, …), (N, …) → (K, N)."""

    @wraps(function)
    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        found = torch.stack([function(own, targets) for own in outputs.unbind(0)])
        if found.shape != outputs.shape[:2]:
            raise ValueError(f"must return one value an example, (N,), got {tuple(found.shape[1:])}")
        return found

    return values


def loss(
    name: str,
    *,
    chance: Callable[[int], float] | None = None,
    classes: bool | None = None,
    unit: str = "mean loss",
    short: str = "loss",
) -> Callable[[F], F]:
    """Register a function (outputs (N, …), targets (N, …)) → mean loss as `task.loss`.

    Its derivatives are PyTorch's.  Gauss-Newton products want it convex in the outputs.  Recipes with
    `curvature: fisher` need the likelihood of a known distribution, and are refused.

    Args:
        name: of the loss.
        chance: the loss of guessing among so many classes, which a diverged trial counts with.  Without it
            nothing is capped, and a diverged trial has no value.
        classes: whether targets are classes; by default so where `chance` is given, else numbers.
        unit: for the axis of a large figure.
        short: the unit in one word.
    """
    _named("loss", name)

    def register(function: F) -> F:
        _enter("loss", name, LOSSES)

        def make() -> Any:
            from ahf_cli.optim.losses import MeanLoss

            own: Callable[[Tensor, Tensor], Tensor] = function
            return MeanLoss(own)

        make.__doc__ = function.__doc__
        guessing = None if chance is None else _guarded("loss", name, chance)
        of_classes = chance is not None if classes is None else classes
        LOSSES[name] = Loss(make, guessing, unit, short, of_classes)
        return function

    return register


def hyperparameter(own: Hyperparameter) -> Hyperparameter:
    """Declare a hyperparameter that no built-in recipe has; a recipe that reads it names it in `search`."""
    _named("hyperparameter", own.name)
    _enter("hyperparameter", own.name, HYPERPARAMETERS)
    HYPERPARAMETERS[own.name] = own
    return own


def part(
    slot: str,
    name: str,
    *,
    formula: str = "",
    sentence: str = "",
    uses: Iterable[str] = (),
    needs: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Register a class or function as a choice of Hessian-free optimization.

    A configuration then has it as `recipes: {NAME: {base: hf, SLOT: name}}`.  Lists, documents and captions
    show it as a built-in part.  A class is made without arguments; a function is the part itself.  The slots
    and the protocols of their parts: docs/contributing.md.

    Args:
        slot: of the part, such as `step_size`.
        name: of the part.
        formula: its term of the update rule.
        sentence: its meaning for training, for captions.
        uses: names of the hyperparameters that it reads.
        needs: slot → the choice there that it works with only.

    Raises:
        ValueError: an unknown slot or hyperparameter, or a name that is taken.
    """
    _named("part", name)
    open_slots = [key for key in SLOTS if key in CHOICES and key != "curvature_batch"]
    if slot not in open_slots:
        raise ValueError(f"part {name!r}: slot must be one of {', '.join(open_slots)}, got {slot!r}")
    for key in (read := tuple(uses)):
        if key not in HYPERPARAMETERS:
            raise ValueError(f"part {name!r}: uses: no hyperparameter {key!r}{nearest(key, HYPERPARAMETERS)}")
    allowed = {other: (choice,) for other, choice in (needs or {}).items()}
    for other, (choice,) in allowed.items():
        if choice not in SLOTS.get(other, {}):
            raise ValueError(f"part {name!r}: needs: there is no {choice!r} in slot {other!r}")

    def register(function: F) -> F:
        _enter(slot, name, SLOTS[slot])
        SLOTS[slot][name] = Part(function, formula, sentence, read, allowed)
        return function

    return register


def recipe(
    name: str,
    *,
    base: str | None = None,
    search: Mapping[str, Range] | None = None,
    fixed: Mapping[str, float] | None = None,
    source: str = "a plug-in",
    **choices: object,
) -> Callable[[F], F]:
    """Register a recipe.

    With a base the function is (Optimizer) → Optimizer: it gets the composition of the base's structural
    choices, and returns it with parts replaced.  Without, it is () → an optimizer of its own, which has
    `init`, `step`, `independent_batch` and `curvature_batches` (a subclass of `ExplicitOptimizer`, say).

    Args:
        name: of the recipe, as `search.recipes` and the folders of its trials have it.
        base: name of a Hessian-free recipe.
        search: hyperparameters that are searched, with their ranges.
        fixed: hyperparameters that are not.
        source: where the update rule comes from.
        choices: structural choices that differ from the base's, such as `curvature="ggn"`.

    Raises:
        ValueError: an unknown base, choice or hyperparameter, or a range or value that is none.
    """
    _named("recipe", name)
    searched, constant = dict(search or {}), dict(fixed or {})
    _check(name, searched, constant)

    def register(function: F) -> F:
        _enter("recipe", name, RECIPES)
        try:
            RECIPES[name] = _made(function, name, base, searched, constant, source, choices)
        except ValueError:
            for slot in ("optimizer", "parts"):
                SLOTS[slot].pop(name, None)
            raise
        return function

    return register


def _check(name: str, searched: Mapping[str, Range], constant: Mapping[str, float]) -> None:
    for key in (*searched, *constant):
        if key not in HYPERPARAMETERS:
            raise ValueError(f"recipe {name!r}: no hyperparameter {key!r}{nearest(key, HYPERPARAMETERS)}")
        if key in searched and key in constant:
            raise ValueError(f"recipe {name!r}: {key} is both searched and fixed: remove one")
    for key, value in constant.items():
        HYPERPARAMETERS[key].check(value, f"recipe {name!r}: {key}")
    for key, found in searched.items():
        for end in (found.low, found.high):
            HYPERPARAMETERS[key].check(end, f"recipe {name!r}: {key}")
        if found.low > found.high or (found.log and found.low <= 0):
            rule = "0 < low ≤ high" if found.log else "low ≤ high"
            raise ValueError(f"recipe {name!r}: {key} needs {rule}, got {found.low:g} and {found.high:g}")


def _made(
    function: Callable[..., Any], name: str, base: str | None, searched: Mapping[str, Range],
    constant: Mapping[str, float], source: str, choices: Mapping[str, object],
) -> Recipe:  # fmt: skip
    make, own = _guarded("recipe", name, _optimizer(function)), (*searched, *constant)
    if base is None:
        if choices:
            raise ValueError(f"recipe {name!r}: {', '.join(choices)} need a base whose choices they change")
        SLOTS["optimizer"][name] = Part(make, uses=own)
        return Recipe(name, Whole("optimizer", name), constant, (), searched, source)
    derived = find_recipe(base).derive(name, choices)
    if before := SLOTS["parts"].get(derived.choices.parts):
        first, last = before.find(), make

        def make(optimizer: Any) -> Any:
            return last(first(optimizer))

        own = tuple(dict.fromkeys([*before.uses, *own]))
    SLOTS["parts"][name] = Part(make, uses=own)
    changed = replace(derived.choices, parts=name)
    values = {key: value for key, value in {**derived.fixed, **constant}.items() if key not in searched}
    ranges = {**derived.ranges, **searched}
    return replace(derived, structure=changed, fixed=values, ranges=ranges, source=source)


def _optimizer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its result checked."""

    @wraps(function)
    def make(*args: Any) -> Any:
        made = function(*args)
        if not (hasattr(made, "init") and hasattr(made, "step")):
            raise TypeError(f"the function must return an optimizer, got {made!r}")
        return made

    return make


def _named(kind: str, name: object) -> None:
    """Raise ValueError for what is no name, as where a decorator is used without its arguments."""
    if not isinstance(name, str):
        raise ValueError(
            f"the decorator of a {kind} needs its name: @plugin.{kind.replace(' ', '_')}('name')"
        )
    if not NAME.fullmatch(name):
        raise ValueError(f"the name of a {kind} must match {NAME.pattern}, got {name!r}")


def _guarded(kind: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its exceptions as one line that says where they come from."""

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            plugin = _ORIGIN.get((kind, name))
            where = "" if plugin is None else f"{plugin.path.name}{_line(error, plugin.path)}: "
            raise InputError(f"{where}{kind} {name}: {type(error).__name__}: {error}") from error

    return call


def _line(error: BaseException, path: Path) -> str:
    """Return `:N`, the last line of a file that an exception went through."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f":{own[-1].lineno}" if own else ""


def _enter(kind: str, name: str, known: Mapping[str, object]) -> None:
    """Note where a name comes from; raise ValueError for one that is taken."""
    if name in known:
        raise ValueError(f"there is a {kind} {name!r} already: choose another name")
    if _loading:
        _ORIGIN[kind, name] = _loading[-1]


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
    _loading.append(plugin)
    try:
        # Not by an import, which would read the file once more, or what it was compiled to before.
        exec(compile(plugin.content, str(plugin.path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line, said = _line(error, plugin.path), str(error)
        if isinstance(error, SyntaxError):
            line, said = f":{error.lineno}", error.msg
        raise InputError(f"--plugin {plugin.path}{line}: {type(error).__name__}: {said}") from error
    finally:
        _loading.pop()


def origins(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of the plug-ins that (kind, name) pairs come from, by `kind name`."""
    return {f"{kind} {name}": _ORIGIN[kind, name].digest for kind, name in names if (kind, name) in _ORIGIN}
