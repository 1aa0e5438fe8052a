"""`torch.optim.Optimizer` adapters for people with their own model and loop: K = 1 rows on the same core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from ahf_cli.hyperparameters import RECIPES, Recipe
from ahf_cli.optim.losses import autograd_hessian
from ahf_cli.optim.objective import Evaluation
from ahf_cli.optim.operations import FasterOperations
from ahf_cli.optim.optimizer import Optimizer, State, StepInfo
from ahf_cli.optim.recipes import compose
from ahf_cli.optim.rows import Layout

Closure = Callable[[], Tensor | tuple[Tensor, Tensor]]
"""Returns the loss, or (loss, outputs), at the parameters' present values; calls no `backward`."""


class _ClosureObjective:
    """h(θ) by writing θ into the parameters and calling the closure."""

    def __init__(self, closure: Closure, parameters: list[Tensor], layout: Layout, check: bool):
        self.closure, self.parameters, self.layout, self.check = closure, parameters, layout, check

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) without a graph; (1, P) → (1,).  The parameters' values are put back."""
        before = [p.data for p in self.parameters]
        try:
            # Exchanging the storage, unlike writing into it, leaves graphs at the present values usable.
            for p, value in zip(self.parameters, self.layout.split(parameters), strict=True):
                p.data = value[0]
            with torch.no_grad():
                return self._call()[0].reshape(1)
        finally:
            for p, data in zip(self.parameters, before, strict=True):
                p.data = data

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at the present values of the parameters, which θ must equal."""
        with torch.enable_grad():
            loss, outputs = self._call()
            if self.check:
                self._check_used(loss)
            return Evaluation(
                self.layout,
                self.parameters,
                loss.reshape(1),
                outputs,
                lambda: autograd_hessian(loss, outputs),  # type: ignore[arg-type]  # asked for only if given
            )

    @torch.no_grad()
    def assign(self, parameters: Tensor) -> None:
        """Write θ, (1, P), into the parameters."""
        for p, value in zip(self.parameters, self.layout.split(parameters), strict=True):
            p.copy_(value[0])

    def _call(self) -> tuple[Tensor, Tensor | None]:
        with FasterOperations():
            result = self.closure()
        loss, outputs = result if isinstance(result, tuple) else (result, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError("the closure must return a scalar loss tensor, or (loss, outputs)")
        return loss, outputs

    def _check_used(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise RuntimeError(
                "the loss depends on no optimized parameter: return it with its graph, "
                "not detached or from no_grad"
            )
        try:
            gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError(
                "the closure must not call backward(): return the loss with its graph"
            ) from None
        unused = [name for name, g in zip(self.layout.names, gradients, strict=True) if g is None]
        if unused:
            raise RuntimeError(
                f"the loss does not depend on {', '.join(unused)}: "
                "leave unused parameters out of the optimizer"
            )


class _RecipeOptimizer(torch.optim.Optimizer):
    """One row of the core, with the hyperparameters in `param_groups` and the state in `state`."""

    def __init__(self, params: Any, recipe: Recipe, values: Mapping[str, float]):
        self._recipe = recipe
        self._core: Optimizer = compose(recipe.structure)
        self._first = True
        self.last_step: StepInfo | None = None
        """What the last step did: loss, damping, reduction ratio, CG iterations, …; tensors of one row."""
        used = {name: value for name, value in values.items() if name in recipe.hyperparameters}
        super().__init__(params, recipe.complete(used))
        self._parameters()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_recipe": self._recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._core, self._first, self.last_step = compose(self._recipe.structure), True, None

    @property
    def damping(self) -> float:
        """The present damping λ."""
        return float(self._state().damping)

    @property
    def diverged(self) -> bool:
        """Whether a step was not finite: the parameters are the last finite ones and stay so."""
        return bool(self._state().diverged_at > 0)

    @overload  # type: ignore[override]
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Closure, curvature_closure: Closure | None = None) -> Tensor: ...

    def step(self, closure: Closure | None = None, curvature_closure: Closure | None = None) -> Tensor | None:
        """Take one step of Algorithm 1 and return the loss before it.

        Args:
            closure: evaluates the model on the gradient batch and returns the loss, or (loss, outputs) where
                `curvature="ggn"`.  It is called several times, must be deterministic, and must call neither
                `zero_grad` nor `backward`.
            curvature_closure: the same on a second batch, for the curvature; by default the gradient batch.
        """
        objective, curvature = self._objectives(closure, curvature_closure)
        with torch.enable_grad():
            state, self.last_step = self._optimizer(curvature).step(self._state(), objective, curvature)
        self._first = False
        objective.assign(state.parameters)
        self._store(state)
        return self.last_step.loss[0]

    def direction(self, closure: Closure, curvature_closure: Closure | None = None) -> list[Tensor]:
        """Solve (B + λI) δ = −∇h and return δ, one tensor for each parameter, without taking a step.

        Feed it to another optimizer by `p.grad = -d`.  Parameters, damping and moments stay; δ is kept as
        the start of the next solve.
        """
        objective, curvature = self._objectives(closure, curvature_closure)
        core, state = self._optimizer(curvature), self._state()
        here = objective.evaluate(state.parameters)
        operator = core.curvature(here if curvature is None else curvature.evaluate(state.parameters))
        operator.prepare()
        found = core.solver(operator, here.gradient, state.damping, state.direction, state.active)
        if bool(torch.isfinite(found.solution).all()):  # or the next solve would start from it
            self._store(replace(state, direction=found.solution))
        return [piece[0].clone() for piece in objective.layout.split(found.solution)]

    def _objectives(
        self, closure: Closure | None, curvature_closure: Closure | None
    ) -> tuple[_ClosureObjective, _ClosureObjective | None]:
        if closure is None:
            raise TypeError(f"{type(self).__name__} needs a closure that returns the loss")
        made = [
            _ClosureObjective(c, self._parameters(), self._layout(), check=self._first)
            for c in (closure, curvature_closure)
            if c is not None
        ]
        return made[0], made[1] if len(made) > 1 else None

    def _optimizer(self, curvature: _ClosureObjective | None) -> Optimizer:
        batch = "same" if curvature is None else "independent"
        if self._core.independent_batch != (curvature is not None):
            self._core = compose(self._recipe.derive("own", {"curvature_batch": batch}).structure)
        return self._core

    def _parameters(self) -> list[Tensor]:
        """All parameters of all groups; the groups must agree in every hyperparameter."""
        first, *others = self.param_groups
        for group in others:
            for name in self._recipe.hyperparameters:
                if group[name] != first[name]:
                    raise ValueError(
                        f"{name} must be equal in all parameter groups, since one linear system spans them: "
                        f"got {first[name]!r} and {group[name]!r}"
                    )
        found: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        frozen = [name for name, p in zip(self._names(), found, strict=True) if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"{', '.join(frozen)}: requires_grad is False; leave frozen parameters out of the optimizer"
            )
        kinds = {(p.dtype, p.device) for p in found}
        if len(kinds) > 1:
            raise ValueError(f"all parameters must have one dtype and device, got {sorted(map(str, kinds))}")
        return found

    def _names(self) -> list[str]:
        """Names given by `named_parameters`, else positions."""
        names: list[str] = []
        for group in self.param_groups:
            numbered = [f"parameter {len(names) + i}" for i in range(len(group["params"]))]
            names += group.get("param_names", numbered)
        return names

    def _layout(self) -> Layout:
        return Layout.of(zip(self._names(), self._parameters(), strict=True))

    def _state(self) -> State:
        """Read the core's state from parameters, `state` and `param_groups`."""
        parameters, layout = self._parameters(), self._layout()
        theta = layout.join([p.detach() for p in parameters])
        values = {name: self.param_groups[0][name] for name in self._recipe.hyperparameters}
        fresh = self._core.init(theta, values)
        if not self.state.get(parameters[0]):
            return fresh
        memory = self.state[parameters[0]]
        absent = {"direction", *fresh.moments} - memory.keys()
        if absent:
            raise ValueError(f"the loaded state is of another recipe: it has no {', '.join(sorted(absent))}")

        def vector(name: str) -> Tensor:  # parameters that joined later have no memory yet
            return layout.join([self.state[p].get(name, torch.zeros_like(p)) for p in parameters])

        return State(
            parameters=theta,
            direction=vector("direction"),
            damping=memory["damping"].reshape(1).to(theta),
            step=memory["step"].reshape(1).to(fresh.step),
            diverged_at=memory["diverged_at"].reshape(1).to(fresh.step),
            moments={name: vector(name) for name in fresh.moments},
            hyperparameters=fresh.hyperparameters,
        )

    def _store(self, state: State) -> None:
        """Write the core's state into `state`, vectors by parameter, scalars at the first one."""
        parameters, layout = self._parameters(), self._layout()
        vectors = {"direction": state.direction, **state.moments}
        for name, vector in vectors.items():
            for p, piece in zip(parameters, layout.split(vector), strict=True):
                self.state[p][name] = piece[0].clone()
        for name in ("damping", "step", "diverged_at"):
            self.state[parameters[0]][name] = getattr(state, name).clone()


class HessianFree(_RecipeOptimizer):
    """Hessian-free optimization: θ ← θ + α δ with (B + λI) δ ≈ −∇h by truncated conjugate gradient.

    The defaults are Algorithm 1's baseline with B and the gradient on one batch.  Example: see README.

    Args:
        params: parameters, named parameters or groups that agree in every hyperparameter.
        lr: step size α > 0.
        damping: initial damping λ₀ > 0; Levenberg-Marquardt moves it from there.
        choices: structural choices by name, such as `curvature="ggn"`, `reduction_ratio="update"` or
            `max_iterations=20`; see `ahf_cli.hyperparameters.Structure`.  Where a choice uses further
            hyperparameters, they are given the same way.

    Raises:
        ValueError: a value outside its interval, an unknown choice, frozen parameters, groups that differ.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, damping: float = 10.0, **choices: Any):
        recipe = RECIPES["hf"].derive("HessianFree", {"curvature_batch": "same", **choices})
        super().__init__(params, recipe, {"lr": lr, "damping": damping})


class AdaptiveHessianFree(_RecipeOptimizer):
    """Adaptive Hessian-free optimization: Adam-like moments of δ, times the step size of Eq. 3 (Algorithm 1).

    In the paper's search ranges u ≈ α_t sign(δ) with α_t ∝ ‖δ‖², which crawls or explodes.  The defaults here
    are the regime that the theorem assumes, μ = 2σ, in which u ≈ α_t δ/(2σ), with constant damping, which
    keeps ‖δ‖ below σ on small problems.  For Algorithm 1 as printed give the paper's values, `mu=1e-8` and
    `damping_rule="levenberg_marquardt"`.

    Args:
        params: parameters, named parameters or groups that agree in every hyperparameter.
        damping: initial damping λ₀ > 0.
        beta2: decay β₂ of the second moment, in [0, 1).
        epsilon: ε > 0, the size of ‖δ‖ at which the theorem stops; with σ it sets β₁ = ε/(ε + 2σ).
        sigma: σ > 0, the bound on ‖δ‖.
        smoothness: L > 0, the conjugate smoothness.
        mu: μ > 0, added to the root of the second moment.
        choices: structural choices by name, such as `curvature="ggn"` or `step_size="eq3_repaired"`.

    Raises:
        ValueError: a value outside its interval, an unknown choice, frozen parameters, groups that differ.
    """

    def __init__(
        self,
        params: Iterable[Any],
        damping: float = 1.0,
        beta2: float = 1e-5,
        epsilon: float = 1e-3,
        sigma: float = 3.0,
        smoothness: float = 0.3,
        mu: float = 6.0,
        **choices: Any,
    ):
        own = {"curvature_batch": "same", "damping_rule": "constant"}
        recipe = RECIPES["adaptive_hf"].derive("AdaptiveHessianFree", {**own, **choices})
        values = {
            "damping": damping, "beta2": beta2, "epsilon": epsilon, "sigma": sigma,
            "smoothness": smoothness, "mu": mu,
        }  # fmt: skip
        super().__init__(params, recipe, values)
