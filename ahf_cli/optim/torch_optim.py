"""`HessianFree` and `AdaptiveHessianFree`: optimizers for your own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

import ahf_cli.optim.groups as groups
from ahf_cli.optim.damping import DOWN, UP, LevenbergMarquardt, ScaledLevenbergMarquardt
from ahf_cli.optim.layer_statistics import NO_LAYERS
from ahf_cli.optim.linearization import NO_STATES
from ahf_cli.optim.preconditioners import Given
from ahf_cli.optim.single_row import RecipeOptimizer
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import OUTER

ROBUST: Mapping[str, Any] = {
    "curvature": "automatic", "curvature_batch": "same", "reduction_ratio": "update",
    "ratio_rounding": "guarded", "cg_rules": "martens_relative",
    "damping_rule": "levenberg_marquardt_scaled", "backtracking": "martens", "line_search": "armijo",
    "max_iterations": 250,
}  # fmt: skip
"""Choices of the classes: no rise of h on its batch, whatever its unit."""
PAPER: Mapping[str, Any] = {
    "curvature": "hessian", "curvature_batch": "same", "reduction_ratio": "direction",
    "ratio_rounding": "printed", "cg_rules": "martens", "damping_rule": "levenberg_marquardt",
    "backtracking": "none", "line_search": "none", "max_iterations": 50,
}  # fmt: skip
"""Choices of the paper's Algorithm 1, with B and the gradient on one batch."""
STABLE: Mapping[str, Any] = {
    **PAPER, "curvature": "ggn", "reduction_ratio": "update", "max_iterations": 10, "step_size": "hyperbolic",
    "clipping": "radius",
}  # fmt: skip
"""Choices of the recipe `hf_stable`, with B and the gradient on one batch."""
LBFGS = ("max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn")


def _recipe(name: str, base: str, choices: Mapping[str, Any], values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a class; raises ValueError for choices and values without effect."""
    if foreign := [key for key in choices if key in LBFGS]:
        raise ValueError(
            f"{foreign[0]} is an option of torch.optim.LBFGS; here max_iterations limits the iterations of CG"
        )
    for key in ("curvature_batches", "batch_growth"):
        if choices.get(key, 1) != 1:
            raise ValueError(f"{key} has no effect in {name}: the closures are the batches")
    if outer := [key for key in choices if key in OUTER]:
        raise ValueError(
            f"{outer[0]} is a choice of recipes; here take a scheduler of torch.optim.lr_scheduler, or an "
            "average of torch.optim.swa_utils"
        )
    # The classes' weight decay is a value of each group, and needs no choice.
    recipe = RECIPES[base].derive(name, {k: v for k, v in choices.items() if k != "regularization"})
    if (kind := choices.get("regularization", "l2")) != "l2":
        raise ValueError(f"regularization must be l2, with weight_decay for each group, got {kind!r}")
    structure = recipe.choices
    if structure.preconditioner == "martens":
        raise ValueError(
            "preconditioner: martens needs the gradients of single examples, and a closure gives none; "
            "take gradient or hutchinson"
        )
    if "kfac" in (structure.solver.removeprefix("e"), structure.preconditioner):
        raise ValueError(NO_LAYERS)
    if structure.parts_used["damping_matrix"].states:
        raise ValueError(NO_STATES)
    if structure.settings:
        raise ValueError(
            "nystrom keeps matrices from step to step, and the state of a class has vectors alone; take the "
            "preconditioner gradient or hutchinson"
        )
    if "norm" in choices and not structure.step_size.startswith("eq3"):
        raise ValueError(f"norm has no effect with step_size {structure.step_size}")
    for key in values:
        if key not in (*recipe.hyperparameters, "lr"):
            raise ValueError(f"{key} has no effect in {name} with these choices")
    return recipe


def _rule(name: str, factors: tuple[float, float], bounds: tuple[float, float]) -> LevenbergMarquardt:
    """Return the damping rule with these factors and bounds; raises ValueError for bad or unused ones."""
    if name != "levenberg_marquardt_scaled":
        raise ValueError(f"damping_factors and damping_bounds have no effect with damping_rule {name}")
    if not factors[1] < 1 < factors[0] or factors[1] <= 0:
        raise ValueError(f"damping_factors must be one above 1 and one in (0, 1), got {factors}")
    if not 0 < bounds[0] <= 1 <= bounds[1]:
        raise ValueError(f"damping_bounds must be 0 < low ≤ 1 ≤ high, in units of λ₀, got {bounds}")
    return ScaledLevenbergMarquardt(factors[0], factors[1], bounds)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class HessianFree(RecipeOptimizer):
    """Hessian-free optimization: θ ← θ + α δ with (B + λI) δ ≈ −∇h by truncated conjugate gradient.

    After Martens (2010).  B is the Gauss-Newton matrix if the closure returns (loss, outputs).  It
    is the exact Hessian if the closure returns the loss alone.  The direction is the best of CG's iterates.
    A line search refuses every rise of h on its batch, and λ follows from the ratio ρ at the step made.
    `HessianFree.stable` is for mini-batches.  `HessianFree.paper` is HF as printed.  Example: README.

    Args:
        params: parameters, named parameters or groups that agree in every hyperparameter but weight_decay;
            dense, float32 or float64, on one device.
        lr: first step size of the line search, α > 0; schedulers may change it, also to 0.
        damping: initial damping λ₀ > 0, in units of B; writable later, also in `param_groups`.
        weight_decay: w ≥ 0 in h + ½ w ‖θ‖², for each group.
        damping_factors: factors of λ where ρ < ¼, above 1, and where ρ > ¾, below 1.
        damping_bounds: least and greatest λ in units of λ₀.
        preconditioner: `"none"`, `"gradient"` for M = (g² + λ)^¾, `"hutchinson"` for M = |D| + λ, or a
            function without arguments.  D estimates the diagonal of B by ten products a step.  The function
            returns the diagonal of M > 0 as tensors in the parameters' shapes, once a step.
        process_group: ranks over which loss, gradient and products are averaged.  Default: the ranks of a
            `DistributedDataParallel` module that the closure runs.  False: this rank trains alone.
        choices: structural choices by name, such as `curvature="ggn"`, `solver="trust_region"` or
            `max_iterations=20`; see `ahf_cli.recipes.recipe.Structure`.  Further hyperparameters of a choice
            are given the same way.

    Raises:
        ValueError: a value outside its interval, an unknown choice or key, a setting without effect.
            Parameters that are frozen, sparse, repeated or of another dtype.  Groups that differ.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        damping: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        process_group: dist.ProcessGroup | bool | None = None,
        damping_factors: tuple[float, float] = (UP, DOWN),
        damping_bounds: tuple[float, float] = (1e-10, 1e10),
        preconditioner: str | Callable[[], Sequence[Tensor]] = "none",
        **choices: Any,
    ):
        parts: dict[str, Any] = {}
        if callable(preconditioner):
            parts["preconditioner"] = Given(preconditioner)
        else:
            choices["preconditioner"] = preconditioner
        recipe = _recipe("HessianFree", "hf", {**ROBUST, **choices}, {})
        if (damping_factors, damping_bounds) != ((UP, DOWN), (1e-10, 1e10)):
            parts["damping_rule"] = _rule(recipe.choices.damping_rule, damping_factors, damping_bounds)
        values = {"lr": lr, "damping": damping}
        super().__init__(params, recipe, values, weight_decay, process_group, parts)

    @classmethod
    def paper(
        cls, params: Iterable[Any], lr: float | Tensor = 1.0, damping: float | Tensor = 10.0, **choices: Any
    ) -> HessianFree:
        """Return HF as the paper prints it: exact Hessian, constant step size, ρ at the full direction.

        It may raise the loss without bound.
        """
        return cls(params, lr, damping, **{**PAPER, **choices})

    @classmethod
    def stable(
        cls,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        damping: float | Tensor = 10.0,
        halving: float | Tensor = 200.0,
        radius: float | Tensor = 0.1,
        **choices: Any,
    ) -> HessianFree:
        """Return the recipe `hf_stable`, for a new mini-batch at each step: no line search, short CG.

        α_t = lr/(1 + (t−1)/τ) at step t, with τ = `halving` > 0 in steps.  ‖u‖ ≤ `radius` over all weights.
        The closure returns (loss, outputs).  A second closure on a batch of its own gives B as in the
        recipe; without one B has the gradient's batch.  Measured in docs/recipes-that-work.md.
        """
        return cls(params, lr, damping, halving=halving, radius=radius, **{**STABLE, **choices})


class AdaptiveHessianFree(RecipeOptimizer):
    """Adaptive Hessian-free optimization: Adam-like moments of δ, times the step size of Eq. 3 (Algorithm 1).

    m ← β₁m + (1−β₁)δ and v ← β₂v + (1−β₂)δ²; θ ← θ + α_t m̂/(√v̂ + μ).  m̂ and v̂ are m and v without their
    bias towards 0, and α_t follows from ‖δ‖, σ and L.

    The defaults are the regime of the theorem, μ = 2σ, in which u ≈ α_t δ/(2σ), with the safeguards of
    `HessianFree`.  On the seven problems of docs/performance.md no step raises the loss.  After 300 forward
    passes the loss is below that of L-BFGS on the adding problem and the deep autoencoder.  It is
    above it on Rosenbrock's function and an equation by factors of 1e4 or more: take `HessianFree` there.
    `AdaptiveHessianFree.paper` gives Algorithm 1 as printed, with values of the paper's
    ranges: there u ≈ α_t sign(δ) with α_t ∝ ‖δ‖², so that training crawls or explodes.

    Args:
        params: as for `HessianFree`.
        lr: factor of α_t, for schedulers; with `step_size="constant"` the step size itself.
        damping: initial damping λ₀ > 0.
        beta2: decay β₂ of the second moment, in [0, 1); default 1e-5.
        epsilon: ε > 0, the value of ‖δ‖ at which the theorem stops; it sets β₁ = ε/(ε + 2σ); default 1e-3.
        sigma: σ > 0, the bound on ‖δ‖; default 3.
        smoothness: L > 0, the conjugate smoothness; default 0.3.
        mu: μ > 0, added to the root of the second moment; default 2σ.
        weight_decay: as for `HessianFree`.
        process_group: as for `HessianFree`.
        choices: structural choices by name, such as `step_size="eq3_repaired"`.

    Raises:
        ValueError: as for `HessianFree`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        damping: float | Tensor = 1.0,
        beta2: float | Tensor | None = None,
        epsilon: float | Tensor | None = None,
        sigma: float | Tensor | None = None,
        smoothness: float | Tensor | None = None,
        mu: float | Tensor | None = None,
        weight_decay: float = 0.0,
        process_group: dist.ProcessGroup | bool | None = None,
        **choices: Any,
    ):
        given = _given(beta2=beta2, epsilon=epsilon, sigma=sigma, smoothness=smoothness, mu=mu)
        recipe = _recipe(
            "AdaptiveHessianFree", "adaptive_hf", {**ROBUST, "clipping": "direction", **choices}, given
        )
        own = {"beta2": 1e-5, "epsilon": 1e-3, "sigma": 3.0, "smoothness": 0.3} | given
        own.setdefault("mu", 2 * groups.number("sigma", own["sigma"]))
        used = {name: value for name, value in own.items() if name in recipe.hyperparameters}
        values = {"lr": lr, "damping": damping, **used}
        super().__init__(params, recipe, values, weight_decay, process_group)

    @classmethod
    def paper(
        cls,
        params: Iterable[Any],
        damping: float | Tensor = 10.0,
        beta2: float | Tensor = 1e-5,
        epsilon: float | Tensor = 1e-3,
        sigma: float | Tensor = 50.0,
        smoothness: float | Tensor = 100.0,
        mu: float | Tensor = 1e-8,
        **choices: Any,
    ) -> AdaptiveHessianFree:
        """Return Algorithm 1 as printed, with values within the paper's search ranges."""
        return cls(
            params, 1.0, damping, beta2, epsilon, sigma, smoothness, mu,
            **{**PAPER, "clipping": "none", **choices},
        )  # fmt: skip
