"""`HessianFree` and `AdaptiveHessianFree`: optimizers of `torch.optim` that run one row on the core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

import ahf_cli.optim.groups as groups
from ahf_cli.optim.closure import Closure, ClosureObjective, graphs_in_use
from ahf_cli.optim.optimizer import Optimizer, compose
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.state import State, StepInfo
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import Recipe


class _RecipeOptimizer(torch.optim.Optimizer):
    """One row of the core, with the hyperparameters in `param_groups` and the state in `state`."""

    def __init__(self, params: Any, recipe: Recipe, values: Mapping[str, Any]):
        self._recipe = recipe
        self._core: Optimizer = compose(recipe.choices)
        self._first = True
        self.last_step: StepInfo | None = None
        """record of the last step (loss, damping, reduction ratio, CG iterations, …), tensors of one row"""
        used = {
            name: groups.number(name, value)
            for name, value in values.items()
            if name in recipe.hyperparameters
        }
        super().__init__(params, recipe.complete(used))

    def __getstate__(self) -> dict[str, Any]:
        # Without the core, whose parts may be functions that pickle refuses: the recipe makes it anew.
        return {**super().__getstate__(), "_recipe": self._recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._core, self._first, self.last_step = compose(self._recipe.choices), True, None

    @property
    def damping(self) -> float:
        """The present damping λ."""
        return float((self._memory() or self.param_groups[0])["damping"])

    @property
    def diverged(self) -> bool:
        """Whether a step was not finite; then the parameters keep their last finite values."""
        return bool(self._memory().get("diverged_at", 0) > 0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with the hyperparameters of the other groups; δ and the moments begin at 0.

        Args:
            param_group: `params`, and optionally `name` and hyperparameters equal to the other groups'.

        Raises:
            ValueError: an unknown key or a bad value.  Parameters that are frozen, repeated, sparse, or
                neither float32 nor float64.  Another dtype or device than the other parameters.
        """
        names = self._recipe.hyperparameters
        super().add_param_group(groups.completed(param_group, names, self.param_groups))
        try:
            self._parameters()
            self._values()
        except ValueError:
            self.param_groups.pop()  # PyTorch has added it already: a refused group must leave no trace
            raise
        self._first = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bitwise from the `state_dict()` of another optimizer of this recipe.

        Raises:
            ValueError: the state of another recipe, optimizer or model; then nothing changes.
        """
        vectors = ("direction", *self._core.transform.init(self._theta()))
        groups.check_saved(state_dict, self._recipe.hyperparameters, vectors, self.param_groups)
        super().load_state_dict(state_dict)

    @overload  # type: ignore[override]
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Closure, curvature_closure: Closure | None = None) -> Tensor: ...

    def step(self, closure: Closure | None = None, curvature_closure: Closure | None = None) -> Tensor | None:
        """Take one step of Algorithm 1 and return the loss before it, a tensor of no dimension.

        Args:
            closure: evaluates the model on the gradient batch and returns the loss, or (loss, outputs) for
                `curvature="ggn"`.  A step calls it two or three times, on the same batch.  It calls no
                `backward`.  Dropout draws the same mask in all calls, and running statistics move once.
            curvature_closure: the same on a second batch, for the curvature; default: the gradient batch.

        Raises:
            TypeError: no closure, or a closure that returns another form.
            ValueError: the recipe needs outputs or a second closure; groups that differ; a bad value.
            RuntimeError: the closure calls `backward`, or its loss does not depend on a parameter.
        """
        objective, curvature = self._objectives(closure, curvature_closure)
        with graphs_in_use():
            state, self.last_step = self._optimizer(curvature).step(self._state(), objective, curvature)
        self._first = False
        objective.assign(state.parameters)
        self._store(state)
        return self.last_step.loss[0]

    @graphs_in_use()
    def direction(self, closure: Closure, curvature_closure: Closure | None = None) -> list[Tensor]:
        """Solve (B + λI) δ = −∇h and return δ, one tensor for each parameter, without taking a step.

        Give it to another optimizer by `p.grad = -d`.  Parameters, damping and moments do not change; δ is
        kept as the start of the next solve.  Arguments and errors are as in `step`.
        """
        objective, curvature = self._objectives(closure, curvature_closure)
        state = self._state()
        solved = self._optimizer(curvature).solve(state, objective, curvature)
        self._first = False
        # A direction with NaN would spoil the next solve, which starts from it.
        if bool(torch.isfinite(solved.warm_start).all()):
            self._store(replace(state, direction=solved.warm_start))
        return [piece[0].clone() for piece in objective.layout.split(solved.cg.solution)]

    def _objectives(
        self, closure: Closure | None, curvature_closure: Closure | None
    ) -> tuple[ClosureObjective, ClosureObjective | None]:
        needs = f"{type(self).__name__} needs a closure that returns the loss, got"
        if closure is None or not callable(closure):
            raise TypeError(f"{needs} {type(closure).__name__}")
        if not (curvature_closure is None or callable(curvature_closure)):
            raise TypeError(f"{needs} {type(curvature_closure).__name__} for the curvature")
        structure = self._recipe.choices
        if structure.curvature_batch == "independent" and curvature_closure is None:
            raise ValueError(
                "curvature_batch: independent needs a second closure, on the batch of the curvature: "
                "step(closure, curvature_closure)"
            )
        parameters, layout, ggn = self._parameters(), self._layout(), structure.curvature != "hessian"

        def objective(closure: Closure, curved: bool) -> ClosureObjective:
            return ClosureObjective(
                closure, parameters, layout, needs_outputs=ggn and curved, check=self._first
            )

        if curvature_closure is None:
            return objective(closure, True), None
        return objective(closure, False), objective(curvature_closure, True)

    def _optimizer(self, curvature: ClosureObjective | None) -> Optimizer:
        batch = "same" if curvature is None else "independent"
        # Each step may come with or without a second closure: the core follows.
        if self._core.independent_batch != (curvature is not None):
            self._core = compose(self._recipe.derive("own", {"curvature_batch": batch}).choices)
        return self._core

    def _parameters(self) -> list[Tensor]:
        return groups.parameters(self.param_groups)

    def _values(self) -> dict[str, float]:
        return groups.shared_values(self.param_groups, self._recipe.hyperparameters)

    def _layout(self) -> Layout:
        return Layout.of(zip(groups.names(self.param_groups), self._parameters(), strict=True))

    def _theta(self) -> Tensor:
        return self._layout().join([p.detach() for p in self._parameters()])

    def _memory(self) -> dict[str, Tensor]:
        """Return the state at the first parameter; empty before the first step."""
        memory: dict[str, Tensor] = self.state.get(self.param_groups[0]["params"][0], {})
        return memory

    def _state(self) -> State:
        """Read the core's state from parameters, `state` and `param_groups`."""
        theta, memory = self._theta(), self._memory()
        fresh = self._core.init(theta, self._values())
        if not memory:
            return fresh
        parameters, layout = self._parameters(), self._layout()

        def vector(name: str) -> Tensor:  # a later group has no memory yet: zeros
            return layout.join([self.state[p].get(name, torch.zeros_like(p)) for p in parameters]).to(theta)

        return replace(
            fresh,
            direction=vector("direction"),
            damping=memory["damping"].reshape(1).to(theta),
            step=memory["step"].reshape(1).to(fresh.step),
            diverged_at=memory["diverged_at"].reshape(1).to(fresh.step),
            moments={name: vector(name) for name in fresh.moments},
        )

    def _store(self, state: State) -> None:
        """Write the core's state into `state`: vectors at each parameter, scalars at the first."""
        parameters, layout = self._parameters(), self._layout()
        vectors = {"direction": state.direction, **state.moments}
        for name, vector in vectors.items():
            for p, piece in zip(parameters, layout.split(vector), strict=True):
                self.state[p][name] = piece[0].clone()
        for name in ("damping", "step", "diverged_at"):
            self.state[parameters[0]][name] = getattr(state, name).clone()


class HessianFree(_RecipeOptimizer):
    """Hessian-free optimization: θ ← θ + α δ with (B + λI) δ ≈ −∇h by truncated conjugate gradient.

    Algorithm 1 of the paper without its moments, after Martens (2010).  The defaults are its baseline, with B
    and the gradient on one batch.  Example: see README.

    Args:
        params: parameters, named parameters or groups that agree in every hyperparameter; dense, float32 or
            float64, on one device.
        lr: step size α > 0; schedulers may change it, also to 0.
        damping: initial damping λ₀ > 0; the Levenberg-Marquardt rule changes it by the reduction ratio ρ.
        choices: structural choices by name, such as `curvature="ggn"`, `reduction_ratio="update"` or
            `max_iterations=20`; see `ahf_cli.recipes.recipe.Structure`.  Further hyperparameters of a choice
            are given the same way.

    Raises:
        ValueError: a value outside its interval, an unknown choice or key, parameters that are frozen,
            sparse, repeated or of another dtype, groups that differ.
    """

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1.0, damping: float | Tensor = 10.0, **choices: Any
    ):
        recipe = RECIPES["hf"].derive("HessianFree", {"curvature_batch": "same", **choices})
        super().__init__(params, recipe, {"lr": lr, "damping": damping})


class AdaptiveHessianFree(_RecipeOptimizer):
    """Adaptive Hessian-free optimization: Adam-like moments of δ, times the step size of Eq. 3 (Algorithm 1).

    m ← β₁m + (1−β₁)δ and v ← β₂v + (1−β₂)δ²; θ ← θ + α_t m̂/(√v̂ + μ).  m̂ and v̂ are m and v without their
    bias towards 0, and α_t follows from ‖δ‖, σ and L.

    In the paper's search ranges u ≈ α_t sign(δ) with α_t ∝ ‖δ‖²: training crawls or explodes.  The defaults
    here are the regime of the theorem, μ = 2σ, in which u ≈ α_t δ/(2σ).  Damping is constant, which keeps
    ‖δ‖ below σ on small problems.  For Algorithm 1 as printed give the paper's values, `mu=1e-8` and
    `damping_rule="levenberg_marquardt"`.

    Args:
        params: as for `HessianFree`.
        damping: initial damping λ₀ > 0.
        beta2: decay β₂ of the second moment, in [0, 1).
        epsilon: ε > 0, the value of ‖δ‖ at which the theorem stops; it sets β₁ = ε/(ε + 2σ).
        sigma: σ > 0, the bound on ‖δ‖.
        smoothness: L > 0, the conjugate smoothness.
        mu: μ > 0, added to the root of the second moment.
        choices: structural choices by name, such as `curvature="ggn"` or `step_size="eq3_repaired"`.
            Only `step_size="constant"` has an `lr` for schedulers.

    Raises:
        ValueError: as for `HessianFree`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        damping: float | Tensor = 1.0,
        beta2: float | Tensor = 1e-5,
        epsilon: float | Tensor = 1e-3,
        sigma: float | Tensor = 3.0,
        smoothness: float | Tensor = 0.3,
        mu: float | Tensor = 6.0,
        **choices: Any,
    ):
        own = {"curvature_batch": "same", "damping_rule": "constant"}
        recipe = RECIPES["adaptive_hf"].derive("AdaptiveHessianFree", {**own, **choices})
        values = {
            "damping": damping, "beta2": beta2, "epsilon": epsilon, "sigma": sigma,
            "smoothness": smoothness, "mu": mu,
        }  # fmt: skip
        super().__init__(params, recipe, values)
