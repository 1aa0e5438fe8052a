"""Decorators that register hyperparameters, parts, recipes, models, data sets, metrics and losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

from ahf_cli.plugin.loading import F, check_name, enter, guarded, of_each_example, optimizer_made
from ahf_cli.recipes.builtin import RECIPES, find_recipe
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Hyperparameter, Range, nearest, of_class
from ahf_cli.recipes.part import Part
from ahf_cli.recipes.parts import SLOTS
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import CHOICES, Whole
from ahf_cli.tasks.catalogue import LOSSES, MODELS, Loss, Model
from ahf_cli.tasks.datasets import DATA_SETS, DataSet
from ahf_cli.tasks.metrics import MEASURED, MEASURES, Measure, Metric

if TYPE_CHECKING:
    from torch import Tensor


def hyperparameter(own: Hyperparameter) -> Hyperparameter:
    """Declare a new hyperparameter; a recipe that reads it names it in `search` or `fixed`."""
    check_name("hyperparameter", own.name)
    if HYPERPARAMETERS.get(own.name) == of_class(own.name):
        del HYPERPARAMETERS[own.name]  # known by its name alone, as an argument of an optimizer class
    enter("hyperparameter", own.name, HYPERPARAMETERS)
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

    A configuration then chooses it by `recipes: {NAME: {base: hf, SLOT: name}}`.  Lists, documents and
    captions show it like a built-in part.  A class is called without arguments; a function is the part
    itself.  docs/plugins.md lists the slots.

    Args:
        slot: slot of the part, such as `step_size`.
        name: name of the part.
        formula: term of the update rule.
        sentence: meaning for training, for captions.
        uses: names of the hyperparameters that the part reads.
        needs: slot → the one choice in that slot with which the part works.

    Raises:
        ValueError: an unknown slot or hyperparameter, or a taken name.
    """
    check_name("part", name)
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
        enter(slot, name, SLOTS[slot])
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

    With a base the function is (Optimizer) → Optimizer: it receives the composition of the base, and returns
    it with other parts.  Without a base the function is () → optimizer.  The optimizer has `init`, `step`,
    `independent_batch` and `curvature_batches`, such as a subclass of `ExplicitOptimizer`.

    Args:
        name: name of the recipe, in `search.recipes` and in the folders of its trials.
        base: name of a Hessian-free recipe.
        search: searched hyperparameters, with their ranges.
        fixed: fixed hyperparameters, with their values.
        source: source of the update rule.
        choices: structural choices that differ from the base's, such as `curvature="ggn"`.

    Raises:
        ValueError: an unknown base, choice or hyperparameter, or an invalid range or value.
    """
    check_name("recipe", name)
    searched, constant = dict(search or {}), dict(fixed or {})
    _check(name, searched, constant)

    def register(function: F) -> F:
        enter("recipe", name, RECIPES)
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
    make, own = guarded("recipe", name, optimizer_made(function)), (*searched, *constant)
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


def model(name: str, *, states: bool = False) -> Callable[[F], F]:
    """Register a function (shape of an input, number of outputs) → `nn.Module` as `task.model`.

    The module maps (N, *shape) to logits (N, classes), or to numbers in the shape of the targets.  Its
    initial weights are not used.  A trial draws weights from its seed: matrices and kernels uniform by
    Glorot, vectors 0, scales of normalisation layers 1.  The module runs in evaluation mode.

    With `states` the module has a method `with_states`, which returns the outputs and all hidden states
    (N, …).  Structural damping needs them.
    """
    check_name("model", name)

    def register(function: F) -> F:
        enter("model", name, MODELS)
        MODELS[name] = Model(guarded("model", name, function), states=states, symbols=None)
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

    The function returns NumPy arrays.  Inputs (N, *shape) are bytes, which are divided by 255, or floating
    point numbers, which do not change.  Targets are integers (N,) in [0, classes), or numbers (N, *target)
    like inputs.  Each process calls the function, so it must return the same arrays at each call.  A sixth
    of the training examples is the validation set.

    Args:
        name: name of the data set.
        shape: shape of an input.
        training: number of training examples, N ≥ 6.
        classes: number of classes, ≥ 2; or
        target: shape of a target of numbers; the model has one output for each entry.
        metrics: names of the metrics beside the loss; the last is the headline, by which recipes are judged.
            Default: accuracy for classes.  Numbers have no default, and the test loss is their headline.
    """
    check_name("data set", name)
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
        enter("data set", name, DATA_SETS)
        made = guarded("data set", name, function)
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

    The metric is the mean over a set, ≥ 0.  Its columns are `train_NAME`, `validation_NAME`, `test_NAME`.

    Args:
        name: small letters, digits and `_`, beginning with a letter.
        label: name in words, as in `test LABEL`.
        better: `lower` or `higher`.
        unit: unit, for the axis of a large figure.
        short: unit in one word.
        top: largest possible value; default: infinite.
        classes: whether targets are classes instead of numbers.
        baseline: number of classes → value of guessing, the value of a diverged trial.

    Raises:
        ValueError: a wrong field, with its name and rule.
    """
    check_name("metric", name)
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
        enter("metric", name, MEASURES)
        own = guarded("metric", name, of_each_example(function))
        declared = Metric(name, label, cast(Literal["lower", "higher"], better), unit, short, float(top))
        counted = None if baseline is None else guarded("metric", name, baseline)
        MEASURES[name] = Measure(declared, own, counted, classes)
        return function

    return register


def loss(
    name: str,
    *,
    chance: Callable[[int], float] | None = None,
    classes: bool | None = None,
    unit: str = "mean loss",
    short: str = "loss",
) -> Callable[[F], F]:
    """Register a function (outputs (N, …), targets (N, …)) → mean loss as `task.loss`.

    PyTorch differentiates it.  Gauss-Newton products need a loss that is convex in the outputs.  Recipes with
    `curvature: fisher` need the likelihood of a known distribution, and so refuse this loss.

    Args:
        name: name of the loss.
        chance: number of classes → loss of guessing, the value of a diverged trial.  Without `chance` no
            loss is capped, and a diverged trial has no value.
        classes: whether targets are classes; default: only if `chance` is given.
        unit: unit, for the axis of a large figure.
        short: unit in one word.
    """
    check_name("loss", name)

    def register(function: F) -> F:
        enter("loss", name, LOSSES)

        def make() -> Any:
            from ahf_cli.optim.losses import MeanLoss

            own: Callable[[Tensor, Tensor], Tensor] = function
            return MeanLoss(own)

        make.__doc__ = function.__doc__
        guessing = None if chance is None else guarded("loss", name, chance)
        of_classes = chance is not None if classes is None else classes
        LOSSES[name] = Loss(make, guessing, unit, short, of_classes)
        return function

    return register
