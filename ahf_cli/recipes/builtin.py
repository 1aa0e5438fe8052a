"""The built-in recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ahf_cli.recipes.hyperparameters import Range, nearest
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import Structure, Whole

_PUBLISHED = Structure(
    curvature_batch="same", reduction_ratio="published", cg_rules="published", damping_rule="published"
)

_STABLE = Structure(
    curvature="ggn", reduction_ratio="update", step_size="hyperbolic", max_iterations=10, clipping="radius"
)
"""Choices that train for almost all hyperparameters; reasons and measurements: docs/recipes-that-work.md."""

_CAREFUL = Structure(
    curvature="ggn", curvature_batch="same", reduction_ratio="update", ratio_rounding="guarded",
    cg_rules="martens_relative", damping_rule="levenberg_marquardt_scaled", max_iterations=250,
    backtracking="martens", line_search="armijo",
)  # fmt: skip
"""The choices of the class `HessianFree`, which never let h rise on its batch."""
_CAREFUL_RANGES = {"damping": Range(1e-2, 100, log=True)}
_KFAC = Structure(
    curvature="ggn", curvature_batch="same", reduction_ratio="update", solver="kfac",
    damping_rule="constant", clipping="radius", schedule="linear",
)  # fmt: skip
_HEAVY = {"momentum": 0.9, "radius": 0.3}
_KFAC_RANGES = {"lr": Range(0.003, 0.3, log=True), "damping": Range(1e-3, 0.1, log=True)}

_LM_RANGES = {"damping": Range(1e-4, 1, log=True)}

_PAPER = "Motokawa and Tezuka 2020"
_LR = {"lr": Range(1e-4, 1, log=True)}
_SMALL_LR = {"lr": Range(1e-5, 0.1, log=True)}
_ADAM = {"beta1": 0.9, "beta2": 0.999, "mu": 1e-8}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("hf", Structure(), source=_PAPER),
        Recipe("adaptive_hf", Structure(step_size="eq3", moments="adam"), {"mu": 1e-8}, source=_PAPER),
        Recipe("hf_published", _PUBLISHED, source=f"{_PAPER}, released code"),
        Recipe(
            "adaptive_hf_published", replace(_PUBLISHED, moments="published"), {"lr": 1e-3, "mu": 1e-8},
            source=f"{_PAPER}, released code",
        ),
        Recipe(
            "hf_stable", _STABLE, {"radius": 0.1},
            ranges={"lr": Range(0.03, 1, log=True), "halving": Range(20, 500, log=True)},
            source="here: docs/recipes-that-work.md",
        ),
        Recipe(
            "adaptive_hf_stable", replace(_STABLE, step_size="eq3_repaired", moments="adam"),
            {"radius": 0.1, "mu": 1.0},
            ranges={"sigma": Range(0.3, 3, log=True), "smoothness": Range(1, 100, log=True)},
            source="here: docs/recipes-that-work.md",
        ),
        Recipe(
            "hf_martens",
            Structure(
                curvature="ggn", curvature_batch="same", reduction_ratio="update", max_iterations=250,
                preconditioner="martens", backtracking="martens", line_search="armijo", regularization="l2",
            ),
            {"lr": 1.0, "weight_decay": 2e-5},
            ranges={"damping": Range(1e-2, 100, log=True)},
            source="Martens 2010; Martens and Sutskever 2012",
        ),
        Recipe(
            "natural_gradient",
            Structure(curvature="fisher", curvature_batch="same", damping_rule="constant"),
            ranges={"lr": Range(1e-3, 1, log=True), "damping": Range(1e-3, 10, log=True)},
            source="Amari 1998",
        ),
        Recipe(
            "hf_careful", _CAREFUL, {"lr": 1.0}, ranges=_CAREFUL_RANGES,
            source="Martens 2010, with the choices of the class HessianFree",
        ),
        Recipe(
            "hf_spring", replace(_CAREFUL, solver="spring"), {"lr": 1.0, "recall": 0.9},
            ranges=_CAREFUL_RANGES, source="Goldshlager et al. 2024",
        ),
        Recipe(
            "kfac", _KFAC, _HEAVY, ranges=_KFAC_RANGES,
            source="Martens and Grosse 2015; Grosse and Martens 2016",
        ),
        Recipe(
            "ekfac", replace(_KFAC, solver="ekfac"), _HEAVY, ranges=_KFAC_RANGES, source="George et al. 2018"
        ),
        Recipe(
            "hf_nystrom", replace(_KFAC, solver="nystrom", renewal=50), _HEAVY,
            ranges={"lr": Range(0.1, 10, log=True), "damping": Range(0.3, 30, log=True)},
            source="Frangella et al. 2022",
        ),
        Recipe(
            "sgd_momentum", Whole("method", "sgd_momentum"), ranges={**_LR, "momentum": Range(0.5, 0.99)},
            source="Polyak 1964; torch.optim.SGD",
        ),
        Recipe(
            "nesterov", Whole("method", "nesterov"), ranges={**_LR, "momentum": Range(0.5, 0.99)},
            source="Nesterov 1983; torch.optim.SGD",
        ),
        Recipe(
            "adagrad", Whole("method", "adagrad"), {"mu": 1e-10}, ranges=_LR,
            source="Duchi et al. 2011; torch.optim.Adagrad",
        ),
        Recipe(
            "rmsprop", Whole("method", "rmsprop"), {"beta2": 0.99, "mu": 1e-8},
            ranges=_SMALL_LR, source="Tieleman and Hinton 2012; torch.optim.RMSprop",
        ),
        Recipe(
            "adam", Whole("method", "adam"), _ADAM, ranges=_SMALL_LR,
            source="Kingma and Ba 2015; torch.optim.Adam",
        ),
        Recipe(
            "adamw", Whole("method", "adamw"), {**_ADAM, "weight_decay": 0.01}, ranges=_SMALL_LR,
            source="Loshchilov and Hutter 2019; torch.optim.AdamW",
        ),
        Recipe(
            "nadam", Whole("method", "nadam"), _ADAM, ranges=_SMALL_LR,
            source="Dozat 2016; torch.optim.NAdam",
        ),
        Recipe(
            "muon", Whole("method", "muon"), {**_ADAM, "momentum": 0.95, "weight_decay": 0.01},
            ranges=_SMALL_LR, source="Jordan et al. 2024; torch.optim.Muon",
        ),
        Recipe(
            "lbfgs", Whole("optimizer", "lbfgs"), ranges={"lr": Range(1e-3, 1, log=True)},
            source="Liu and Nocedal 1989; torch.optim.LBFGS",
        ),
        Recipe(
            "lm", Whole("least_squares", "lm"), ranges=_LM_RANGES, source="Marquardt 1963; Nielsen 1999",
        ),
        Recipe(
            "lm_geodesic", Whole("least_squares", "lm_geodesic"), ranges=_LM_RANGES,
            source="Transtrum and Sethna 2012",
        ),
        Recipe(
            "adahessian", Whole("diagonal", "adahessian"),
            {"beta1": 0.9, "beta2": 0.999, "mu": 1e-4, "hessian_power": 1.0}, ranges=_LR,
            source="Yao et al. 2021",
        ),
    )
}  # fmt: skip
"""The built-in recipes."""


def find_recipe(name: str, recipes: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """Return the recipe with this name; raises ValueError with the nearest known name."""
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}{nearest(name, recipes, pluggable=True)}")
    return recipes[name]
