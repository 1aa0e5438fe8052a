"""Parts: every choice of a recipe, declared once with its formula, sentence and hyperparameters.

A part is a class or a function, in `ahf_cli.optim` or in a plug-in.  Lists, help, documents, captions, search
spaces and checks read its declaration here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ahf_cli.recipes.part import Part

LARGE_MU = 0.1
"""Smallest μ that outweighs the root of the second moment, whose entries are far below 1."""


def _adam(choices: Mapping[str, Any], fixed: Mapping[str, float]) -> str:
    if fixed.get("mu", 0) >= LARGE_MU:
        return (
            "Adam's moments of the direction, with a μ for which an update is about α/μ times the direction"
        )
    return (
        "Adam's moments of the direction, so that with β₂ near 0 an update is little more than α times the "
        "direction's sign"
    )


def _released_moments(choices: Mapping[str, Any], fixed: Mapping[str, float]) -> str:
    if choices["step_size"] != "constant":
        return "the released code's moments"
    return (
        "the released code's moments: Eq. 3 is computed but never used, and the learning rate stays at 0.001"
    )


def _constant_step(choices: Mapping[str, Any], fixed: Mapping[str, float]) -> str:
    released = choices["moments"] == "published"  # the sentence of those moments says it
    return "" if released else "constant step size α"


def _released_ratio(choices: Mapping[str, Any], fixed: Mapping[str, float]) -> str:
    if choices["moments"] != "none":
        return (
            "the reduction ratio divides the change at the update, whose size does not follow the "
            "direction's, by the model at the direction"
        )
    return (
        "the reduction ratio divides the change at the scaled step by the model at the full step, so that "
        "with small steps the damping grows without end"
    )


_DIRECT: Mapping[str, tuple[str, ...]] = {
    "preconditioner": ("none",), "backtracking": ("none",), "reduction_ratio": ("update",),
}  # fmt: skip
"""The choices that a solver without iterations allows."""

SLOTS: dict[str, dict[str, Part]] = {
    "curvature": {
        "hessian": Part("operators:hessian", "B = ∇²h", "exact Hessian"),
        "ggn": Part("operators:gauss_newton", "B = Jᵀ H_L J", "generalized Gauss-Newton matrix"),
        "automatic": Part(
            "operators:automatic", "B = Jᵀ H_L J if the outputs are known, else ∇²h",
            "generalized Gauss-Newton matrix if the outputs are known, else the exact Hessian",
        ),
        # For a negative log-likelihood with natural parameters as outputs F = Jᵀ H_L J (Martens 2020, §9.2).
        "fisher": Part(
            "operators:gauss_newton", "B = F", "Fisher matrix of the model's distribution", likelihood=True
        ),
    },
    "curvature_batch": {
        "same": Part(formula="on the gradient's batch"),
        "independent": Part(formula="on a second batch"),
    },
    "reduction_ratio": {
        "direction": Part(
            "damping:RatioAtDirection", "ρ = (h(θ+δ) − h(θ)) / q(δ)",
            "the reduction ratio is taken at the full direction",
        ),
        "update": Part(
            "damping:RatioAtUpdate", "ρ = (h(θ+u) − h(θ)) / q(u)",
            "the reduction ratio is taken at the step made",
        ),
        "published": Part("published:PublishedRatio", "ρ = (h(θ+u) − h(θ)) / q(δ)", _released_ratio),
    },
    "ratio_rounding": {
        "usual": Part("damping:usual", "guarded for `reduction_ratio: update`, else printed"),
        "printed": Part("damping:printed", "the plain quotient"),
        "guarded": Part(
            "damping:guarded", "ρ = 1 or unknown where rounding hides the change",
            "a reduction ratio of two rounding errors is not used",
        ),
    },
    "step_size": {
        "constant": Part("step_size:ConstantStep", "", _constant_step, ("lr",)),
        "hyperbolic": Part(
            "step_size:HyperbolicStep", "α_t = α / (1 + (t−1)/τ)", "step size α that falls as 1/(1 + t/τ)",
            ("lr", "halving"),
        ),
        "eq3": Part(
            "step_size:ConjugateSmoothnessStep", "α by Eq. 3",
            "step size from Eq. 3, which shrinks with the square of the direction's norm, and is 0 where the "
            "formula is negative",
            ("epsilon", "sigma", "smoothness"),
        ),
        "eq3_repaired": Part(
            "step_size:RepairedConjugateSmoothnessStep", "α by Eq. 3 with the repaired bound",
            "step size from Eq. 3 with the repaired bound", ("epsilon", "sigma", "smoothness"),
        ),
    },
    "norm": {
        "l2": Part("rows:Layout.l2", "‖δ‖₂"),
        "l1": Part("rows:Layout.l1", "‖δ‖₁"),
        "sum_l2": Part("rows:Layout.sum_l2", "Σ ‖δ‖₂ over the tensors"),
    },
    "solver": {
        "cg": Part("newton:TruncatedNewton", "(B + λI) δ = −g by CG"),
        "trust_region": Part(
            "newton:TrustRegion", "min q(δ) over ‖δ‖ ≤ ‖g‖/λ by CG",
            "CG on the undamped model within a trust region", needs={"preconditioner": ("none",)},
        ),
        "gradient": Part(
            "newton:Gradient", "δ = −g/λ", "the direction is the gradient's, without curvature",
            needs={"preconditioner": ("none",)},
        ),
        "spring": Part(
            "newton:Spring", "(B + λI) δ = −g + λ μ δ_previous by CG",
            "the damping draws towards the last direction", ("recall",),
        ),
        "kfac": Part(
            "kronecker:kfac", "δ = −(F + λI)⁻¹ m̂ with F = A ⊗ G in each layer;  m ← γ m + (1−γ) g",
            "K-FAC: inverses of Kronecker factors, on the gradient's moving mean", ("momentum",), _DIRECT,
            ("renewal",),
        ),
        "ekfac": Part(
            "kronecker:ekfac",
            "δ = −(F + λI)⁻¹ m̂ with F diagonal in the eigenbases of A ⊗ G;  m ← γ m + (1−γ) g",
            "EKFAC: a diagonal in Kronecker eigenbases, on the gradient's moving mean", ("momentum",),
            _DIRECT, ("renewal",),
        ),
        "nystrom": Part(
            "nystrom:Nystrom", "δ = −(U diag(s) Uᵀ + λI)⁻¹ m̂ ≈ −(B + λI)⁻¹ m̂;  m ← γ m + (1−γ) g",
            "a low-rank estimate of the curvature, on the gradient's moving mean", ("momentum",), _DIRECT,
            ("renewal", "rank"),
        ),
    },
    "cg_rules": {
        "martens": Part(
            "cg:MartensRules", "CG stops at dᵀ(B+λI)d ≤ 0, and at slow progress once φ < 0"
        ),
        "martens_relative": Part(
            "cg:RelativeMartensRules", "as martens, with ‖r‖ ≤ ε ‖g‖ as the limit of the residual"
        ),
        "forcing": Part(
            "cg:ForcingRules", "CG stops at ‖r‖ ≤ min(½, √(‖g‖/‖g₀‖)) ‖g‖, g₀ the first gradient",
            "CG stops by a forcing sequence",
        ),
        "published": Part("published:PublishedRules", sentence="CG ignores negative curvature"),
        "martens_indefinite": Part(
            "published:IndefiniteMartensRules", sentence="CG ignores negative curvature"
        ),
        "published_truncated": Part(
            "published:TruncatedPublishedRules", sentence="CG stops at slow progress by the released rule"
        ),
    },
    "damping_rule": {
        "levenberg_marquardt": Part(
            "damping:LevenbergMarquardt", "λ ← 3/2 λ where ρ < ¼, 2/3 λ where ρ > ¾", uses=("damping",)),
        "levenberg_marquardt_scaled": Part(
            "damping:ScaledLevenbergMarquardt",
            "as levenberg_marquardt, within [1e-10 λ₀, 1e10 λ₀]", uses=("damping",)),
        "published": Part(
            "published:PublishedDamping", "as levenberg_marquardt, only while λ > 0.1", uses=("damping",)),
        "constant": Part("damping:ConstantDamping", sentence="the damping is constant", uses=("damping",)),
    },
    "damping_matrix": {
        "identity": Part("operators:identity"),
        "structural": Part(
            "operators:structural",
            "(B + λI + λμS) δ = −g, S the Gauss-Newton matrix of ½ mean ‖h(θ+s) − h(θ)‖², h hidden states",
            "damping of the hidden states' change beside the weights'", ("structural_weight",),
            {"solver": ("cg",), "curvature": ("ggn", "fisher", "automatic")}, states=True,
        ),
    },
    "moments": {
        "none": Part("moments:Identity", "u = α δ"),
        "adam": Part(
            "moments:ScaleByAdam", "m ← β₁ m + (1−β₁) δ;  v ← β₂ v + (1−β₂) δ²;  u = α m̂ / (√v̂ + μ)", _adam,
            ("beta2", "epsilon", "sigma", "mu"),
        ),
        "published": Part(  # the released code computes Eq. 3 with L, and only logs it
            "published:PublishedMoments",
            "m ← δ + β₁/(1−β₁) m;  v ← δ² + β₂/(1−β₂) v;  u = α m / (√v + μ)", _released_moments,
            ("beta2", "epsilon", "sigma", "smoothness", "mu"),
        ),
    },
    "preconditioner": {
        "none": Part("preconditioners:none"),
        "gradient": Part(
            "preconditioners:gradient", "preconditioned",
            "CG preconditioned by the squares of the gradient",
        ),
        "martens": Part(
            "preconditioners:martens", "preconditioned",
            "CG preconditioned by the empirical Fisher's diagonal",
        ),
        "hutchinson": Part(
            "preconditioners:hutchinson", "preconditioned",
            "CG preconditioned by a randomly probed diagonal of the curvature",
        ),
        "kfac": Part(
            "kronecker:kfac", "preconditioned", "CG preconditioned by K-FAC", settings=("renewal",)
        ),
        "nystrom": Part(
            "nystrom:Nystrom", "preconditioned", "CG preconditioned by a low-rank estimate of the curvature",
            settings=("renewal", "rank"),
        ),
    },
    "backtracking": {
        "none": Part("newton:LastIterate"),
        "martens": Part(
            "newton:Backtracking", "the best iterate of CG", "steps to the best of CG's iterates"
        ),
    },
    "line_search": {
        "none": Part("step_size:full_step"),
        "armijo": Part(
            "step_size:armijo", "α shortened by a line search",
            "a line search, and no step where it finds none",
        ),
    },
    "regularization": {
        "none": Part("objective:unregularized"),
        "l2": Part(
            "objective:l2_regularized", "h + ½ w ‖θ‖²", "weight decay within the loss", ("weight_decay",)
        ),
    },
    "clipping": {
        "none": Part("step_size:unclipped"),
        "radius": Part("step_size:within_radius", "‖u‖ cut to r", "no update longer than r", ("radius",)),
        "direction": Part(
            "step_size:within_direction", "‖u‖ cut to ‖δ‖", "no update longer than its direction"
        ),
    },
    "schedule": {
        "constant": Part("schedule:constant"),
        "linear": Part("schedule:linear", "α falls to 0 along a line", "α falls to 0 along a line"),
        "cosine": Part("schedule:cosine", "α falls to 0 along a cosine", "α falls to 0 along a cosine"),
        "hyperbolic": Part(
            "schedule:hyperbolic", "α_t = α / (1 + (t−1)/τ)", "α falls as 1/(1 + t/τ)", ("halving",)
        ),
    },
    "warmup": {
        "none": Part("schedule:at_once"),
        "linear": Part(
            "schedule:warm_up", "α rises over the first w T steps", "α rises in the first steps",
            ("warmup_share",),
        ),
    },
    "average": {
        "none": Part(),
        "ema": Part(
            "schedule:Averaged", "θ̄ ← d θ̄ + (1−d) θ is evaluated",
            "a moving average of the iterates is evaluated", ("average_decay",),
        ),
    },
    "parts": {},
    "gradient_clipping": {
        "none": Part("explicit:unlimited"),
        "norm": Part("explicit:within_norm", "‖g‖ ≤ c", "no gradient longer than c", ("gradient_radius",)),
    },
    "method": {
        "sgd_momentum": Part(
            "explicit:sgd_momentum", "b ← γ b + g;  u = −α b", "gradient steps with heavy-ball momentum",
            ("lr", "momentum"),
        ),
        "nesterov": Part(
            "explicit:nesterov", "b ← γ b + g;  u = −α (g + γ b)",
            "gradient steps with Nesterov's momentum", ("lr", "momentum"),
        ),
        "adagrad": Part(
            "explicit:adagrad", "s ← s + g²;  u = −α g / (√s + μ)",
            "gradient steps, each weight's divided by the root of its summed squares", ("lr", "mu"),
        ),
        "rmsprop": Part(
            "explicit:rmsprop", "v ← β₂ v + (1−β₂) g²;  u = −α g / (√v + μ)",
            "gradient steps, each weight's divided by the root of a moving mean of its squares",
            ("lr", "beta2", "mu"),
        ),
        "adam": Part(
            "explicit:adam", "m ← β₁ m + (1−β₁) g;  v ← β₂ v + (1−β₂) g²;  u = −α m̂ / (√v̂ + μ)",
            "moving means of the gradient, divided by the roots of moving means of its squares",
            ("lr", "beta2", "mu", "beta1"),
        ),
        "adamw": Part(
            "explicit:adamw", "as adam;  u = −α m̂ / (√v̂ + μ) − α w θ",
            "Adam with a decay of the weights beside the gradient",
            ("lr", "beta2", "mu", "beta1", "weight_decay"),
        ),
        "nadam": Part(
            "explicit:nadam",
            "as adam;  u = −α (μ_{t+1} m / (1−Π_{s≤t+1} μ_s) + (1−μ_t) g / (1−Π_{s≤t} μ_s)) / (√v̂ + μ), "
            "μ_t = β₁ (1 − ½ 0.96^{t/250})",
            "Adam with Nesterov's momentum", ("lr", "beta2", "mu", "beta1"),
        ),
        "muon": Part(
            "muon:muon",
            "b ← γ b + (1−γ) g;  u = −0.2 α √max(m, n) orth((1−γ) g + γ b) − α w θ on m × n matrices, "
            "else adamw",
            "orthogonalized momentum on matrices, AdamW on all else",
            ("lr", "momentum", "beta2", "mu", "beta1", "weight_decay"),
        ),
    },
    "diagonal": {
        "adahessian": Part(
            "explicit:AdaHessian",
            "D = mean over kernels of z ⊙ Hz, z = ±1;  m ← β₁ m + (1−β₁) g;  v ← β₂ v + (1−β₂) D²;  "
            "u = −α m̂ / (v̂^(k/2) + μ)",
            "Adam with randomly probed Hessian diagonals in place of the gradient's squares",
            ("lr", "beta2", "mu", "beta1", "hessian_power"),
        ),
    },
    "least_squares": {
        "lm": Part(
            "least_squares:lm", "(AᵀA + λI) δ = −Aᵀρ with h = ½ ‖ρ‖², A = ∂ρ/∂θ;  u = δ where h falls",
            "Levenberg-Marquardt with the whole Jacobian; no step where the loss does not fall",
            ("damping",), squares=True,
        ),
        "lm_geodesic": Part(
            "least_squares:lm_geodesic",
            "(AᵀA + λI) δ = −Aᵀρ, (AᵀA + λI) a = −Aᵀρ″;  u = δ + ½ a where h falls",
            "Levenberg-Marquardt with the whole Jacobian and geodesic acceleration; no step where the loss "
            "does not fall", ("damping",), squares=True,
        ),
    },
    "optimizer": {
        "lbfgs": Part(
            "foreign:lbfgs", "20 times u = −α S g, S from the last 100 changes of g, α by Wolfe's conditions",
            "twenty iterations of L-BFGS a step, with a line search by Wolfe's conditions", ("lr",),
        ),
    },
}  # fmt: skip
"""All parts by slot and name.

The slots up to `clipping` belong to Hessian-free optimization; every recipe has `schedule`, `warmup` and
`average`.  `parts` holds functions of plug-ins that change a composition.  `gradient_clipping` belongs to the
parts of `method`.  A part of the last four slots is a whole optimizer; plug-ins register in `optimizer`.
"""
