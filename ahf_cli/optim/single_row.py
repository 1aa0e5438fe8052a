"""A `torch.optim` optimizer that runs one row on the core."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

import ahf_cli.optim.groups as groups
from ahf_cli.optim.backward import own_gradient
from ahf_cli.optim.calls import Ambient
from ahf_cli.optim.closure import Closure, graphs_in_use
from ahf_cli.optim.closures import ClosureBatch, ParallelClosures
from ahf_cli.optim.objective import Regularized
from ahf_cli.optim.optimizer import Optimizer, compose
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.state import State, StepInfo
from ahf_cli.optim.step_size import Scaled
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import choices_of

Closures = Closure | Iterable[Closure]


class RecipeOptimizer(torch.optim.Optimizer):
    """One row of the core, with the hyperparameters in `param_groups` and the state in `state`."""

    def __init__(
        self,
        params: Any,
        recipe: Recipe,
        values: Mapping[str, Any],
        weight_decay: Any,
        process_group: Any,
        parts: Mapping[str, Any] | None = None,
    ):
        self._recipe, self._process_group, self._parts = recipe, process_group, dict(parts or {})
        self._core = self._compose(recipe)
        self._first, self._warned = True, False
        self.last_step: StepInfo | None = None
        """record of the last step (loss, damping, reduction ratio, CG iterations, …), tensors of one row; its
        gradient shares memory with `p.grad`"""
        lr = values.get("lr", 1.0)
        used = {name: groups.number(name, value) for name, value in values.items() if name != "lr"}
        if "lr" in recipe.hyperparameters:
            used["lr"] = groups.number("lr", lr)
        own = {"lr": groups.number("lr", lr), groups.DECAY: groups.number(groups.DECAY, weight_decay)}
        super().__init__(params, {**own, **recipe.complete(used)})

    def __getstate__(self) -> dict[str, Any]:
        # Without the core, whose parts may be functions that pickle refuses: the recipe makes it anew.
        names = ("_recipe", "_process_group", "_parts", "_warned")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._core, self._first, self.last_step = self._compose(self._recipe), True, None

    def _compose(self, recipe: Recipe) -> Optimizer:
        """Compose a recipe with the parts that the caller gave as objects."""
        return replace(compose(recipe.choices), **self._parts)

    @property
    def damping(self) -> float:
        """The present damping λ; a new value takes effect at the next step."""
        return float(self._damping(self.param_groups[0]["damping"]))

    @damping.setter
    def damping(self, value: float) -> None:
        for group in self.param_groups:
            group["damping"] = groups.number("damping", value)
        if memory := self._memory():  # also if λ₀ has this value already
            memory["damping"] = torch.full_like(memory["damping"], value)

    @property
    def diverged(self) -> bool:
        """Whether the last step was not finite and was skipped."""
        return self.last_step is not None and not bool(self.last_step.finite.all())

    def reset(self) -> None:
        """Forget directions, moments and damping: the next step is as the first."""
        self.state.clear()
        self._first, self._warned, self.last_step = True, False, None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with the hyperparameters of the other groups; δ and the moments begin at 0.

        Args:
            param_group: `params`, and optionally `name`, `weight_decay` and hyperparameters equal to the
                other groups'.

        Raises:
            ValueError: an unknown key or a bad value.  Parameters that are frozen, repeated, sparse, or
                neither float32 nor float64.  Another dtype or device than the other parameters.
        """
        super().add_param_group(groups.completed(param_group, self._shared, self.param_groups))
        try:
            self._parameters()
            self._values()
        except ValueError:
            self.param_groups.pop()  # PyTorch has added it already: a refused group must leave no trace
            raise
        self._first = True

    def state_dict(self) -> dict[str, Any]:
        """Return state, groups, and the structural choices under `structure`."""
        return {**super().state_dict(), "structure": choices_of(self._recipe.choices)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bitwise from the `state_dict()` of another optimizer of this structure.

        Raises:
            ValueError: the state of another structure, optimizer or model; then nothing changes.
        """
        vectors = ("direction", *self._core.transform.init(self._theta()))
        structure = choices_of(self._recipe.choices)
        groups.check_saved(state_dict, structure, self._recipe.hyperparameters, vectors, self.param_groups)
        super().load_state_dict(state_dict)

    @overload  # type: ignore[override]
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Closures, curvature_closure: Closures | None = None) -> Tensor: ...

    def step(
        self, closure: Closures | None = None, curvature_closure: Closures | None = None
    ) -> Tensor | None:
        """Take one step of Algorithm 1 and return the loss before it, a tensor of no dimension.

        If the step is not finite, it is skipped: the parameters stay, λ grows, and the first such step warns.
        `p.grad` is the gradient before the step.

        Args:
            closure: evaluates the model on the gradient batch and returns the loss, or (loss, outputs).  A
                step calls it several times, on the same batch.  Dropout draws the same mask in all calls,
                and running statistics move once.  `loss.backward()` within it is intercepted.
                A list of closures stands for one batch in parts: h is the mean of their losses.
            curvature_closure: the same on a second batch, for the curvature; default: the gradient batch.

        Raises:
            TypeError: no closure, or a closure that returns another form.
            ValueError: the structure needs outputs or a second closure; groups that differ; a bad value.
            RuntimeError: the loss ignores the parameters, or differs between two calls.
        """
        batch, curvature = self._objectives(closure, curvature_closure)
        state, self.last_step = self._state(), None  # the record's vectors are free for this step
        with batch.open(), graphs_in_use():
            after, self.last_step = self._optimizer(curvature).step(
                state, self._decayed(batch), None if curvature is None else self._decayed(curvature)
            )
        self._first = False
        if bool(after.diverged_at > 0):
            after = self._skipped(state)
        else:
            batch.assign(after.parameters)
        self._store(after, self.last_step.gradient)
        return self.last_step.loss[0]

    def direction(self, closure: Closures, curvature_closure: Closures | None = None) -> list[Tensor]:
        """Solve (B + λI) δ = −∇h and return δ, one tensor for each parameter, without taking a step.

        To step with another optimizer, set `p.grad = -d` for each parameter p and its d, then call its
        `step()`.  Parameters, damping and moments do not change; δ is kept as the start of the next solve.
        Arguments and errors are as in `step`.
        """
        batch, curvature = self._objectives(closure, curvature_closure)
        state = self._state()
        with batch.open(), graphs_in_use():
            solved = self._optimizer(curvature).solve(
                state, self._decayed(batch), None if curvature is None else self._decayed(curvature)
            )
        self._first = False
        # A direction with NaN would spoil the next solve, which starts from it.
        if bool(torch.isfinite(solved.warm_start).all()):
            self._store(replace(state, direction=solved.warm_start), None)
        return [piece[0].clone() for piece in batch.layout.split(solved.cg.solution)]

    @property
    def _shared(self) -> tuple[str, ...]:
        """Names of the values that all groups share."""
        return tuple(dict.fromkeys((*self._recipe.hyperparameters, "lr")))

    def _objectives(
        self, closure: Closures | None, curvature_closure: Closures | None
    ) -> tuple[ClosureBatch, ClosureBatch | None]:
        structure = self._recipe.choices
        if structure.curvature_batch == "independent" and curvature_closure is None:
            raise ValueError(
                "curvature_batch: independent needs a second closure, on the batch of the curvature: "
                "step(closure, curvature_closure)"
            )
        parameters, layout = self._parameters(), self._layout()
        ggn = structure.curvature not in ("hessian", "automatic")
        ambient = Ambient.of(parameters[0].device)

        def batch(given: Closures | None, curved: bool) -> ClosureBatch:
            closures = _closures(type(self).__name__, given)
            kind = ClosureBatch if self._process_group is False else ParallelClosures
            return kind(
                closures, parameters, layout, ggn and curved, self._first, ambient, self._process_group
            )

        if curvature_closure is None:
            return batch(closure, True), None
        return batch(closure, False), batch(curvature_closure, True)

    def _optimizer(self, curvature: ClosureBatch | None) -> Optimizer:
        batch = "same" if curvature is None else "independent"
        # Each step may come with or without a second closure: the core follows.
        if self._core.independent_batch != (curvature is not None):
            self._core = self._compose(self._recipe.derive("own", {"curvature_batch": batch}))
        if "lr" in self._recipe.hyperparameters:
            return self._core
        return replace(self._core, step_size=Scaled(self._core.step_size, self._values()["lr"]))

    def _decayed(self, batch: ClosureBatch) -> ClosureBatch | Regularized:
        """Return h with weight decay, if a group has any."""
        if not any(group[groups.DECAY] for group in self.param_groups):
            return batch
        weights = [
            torch.full_like(p, group[groups.DECAY]) for group in self.param_groups for p in group["params"]
        ]
        return Regularized(batch, self._layout().join(weights))

    def _skipped(self, before: State) -> State:
        """Return the state after a step that was not finite: as before it, with a higher λ."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: a step was not finite and is skipped: the parameters stay, the "
                "damping grows.  This warning comes once; afterwards read optimizer.diverged",
                RuntimeWarning, stacklevel=3,
            )  # fmt: skip
        # The rule takes NaN for a step too long, and keeps λ within its bounds.
        nan = torch.full_like(before.damping, torch.nan)
        initial = before.hyperparameters["damping"]
        grown = torch.maximum(self._core.damping_rule(before.damping, nan, initial), before.damping)
        return replace(before, damping=grown, direction=torch.zeros_like(before.direction))

    def _parameters(self) -> list[Tensor]:
        return groups.parameters(self.param_groups)

    def _values(self) -> dict[str, float]:
        return groups.shared_values(self.param_groups, self._shared)

    def _layout(self) -> Layout:
        return Layout.of(zip(groups.names(self.param_groups), self._parameters(), strict=True))

    def _theta(self) -> Tensor:
        return self._layout().join([p.detach() for p in self._parameters()])

    def _memory(self) -> dict[str, Tensor]:
        """Return the state at the first parameter; empty before the first step."""
        memory: dict[str, Tensor] = self.state.get(self.param_groups[0]["params"][0], {})
        return memory

    def _damping(self, initial: float) -> float | Tensor:
        """Return λ: that of the last step, unless λ₀ in the groups has changed since."""
        memory = self._memory()
        if not memory:
            return initial
        # PyTorch loads a state in the dtype of the parameters.
        before = memory.get("initial_damping", torch.tensor(initial, dtype=torch.float64))
        return memory["damping"] if before == torch.tensor(initial, dtype=before.dtype) else initial

    def _state(self) -> State:
        """Read the core's state from parameters, `state` and `param_groups`."""
        theta, memory, values = self._theta(), self._memory(), self._values()
        own = {name: values[name] for name in self._recipe.hyperparameters}
        fresh = self._core.init(theta, own)
        if not memory:
            return fresh
        parameters, layout = self._parameters(), self._layout()

        def vector(name: str) -> Tensor:  # a later group has no memory yet: zeros
            return layout.join([self.state[p].get(name, torch.zeros_like(p)) for p in parameters]).to(theta)

        return replace(
            fresh,
            direction=vector("direction"),
            damping=torch.as_tensor(self._damping(values["damping"])).reshape(1).to(theta),
            step=memory["step"].reshape(1).to(fresh.step),
            first_gradient=memory.get("first_gradient", theta.new_zeros(1)).reshape(1).to(theta),
            moments={name: vector(name) for name in fresh.moments},
        )

    def _store(self, state: State, gradient: Tensor | None) -> None:
        """Write the core's state into `state`: vectors at each parameter, scalars at the first."""
        parameters, layout = self._parameters(), self._layout()
        vectors = {"direction": state.direction, **state.moments}
        for name, vector in vectors.items():
            for p, piece in zip(parameters, layout.split(vector), strict=True):
                self.state[p][name] = piece[0]
        scalars = {"damping": state.damping, "step": state.step, "first_gradient": state.first_gradient}
        for name, value in scalars.items():
            self.state[parameters[0]][name] = value.clone()
        # In float64, the precision of the groups: a rounded λ₀ would look like a changed one.
        initial = torch.tensor(self._values()["damping"], dtype=torch.float64)
        self.state[parameters[0]]["initial_damping"] = initial
        if gradient is not None:
            for p, piece in zip(parameters, layout.split(gradient), strict=True):
                p.grad = own_gradient(piece[0])  # a view: one vector serves the record and all gradients


def _closures(name: str, given: Any) -> Sequence[Closure]:
    needs = f"{name} needs a closure that returns the loss, or a list of closures, got"
    if callable(given):
        return (given,)
    if not isinstance(given, Iterable) or isinstance(given, Tensor):
        raise TypeError(f"{needs} {type(given).__name__}")
    found = tuple(given)
    if not found or not all(callable(closure) for closure in found):
        raise TypeError(f"{needs} {[type(closure).__name__ for closure in found]}")
    return found
