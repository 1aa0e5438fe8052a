"""Costs of curvature products and their set-up, beside our gradient and the one of an ordinary loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahf_cli.optim import ModelObjective, gauss_newton, hessian
from benchmarks import problems
from benchmarks.timing import Bench, Spread, interleave, spread

ITERATIONS = 15
"""CG iterations that share one set-up."""
PLAIN = "plain PyTorch gradient"
FIRST_GGN = "forward pass, set-up and first GGN product"
Samples = dict[str, NDArray[np.float64]]


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Time loss, gradient, both products of LeNet and their set-up, in turn."""
    h = problems.objective(bench.device)
    samples = _samples(bench, h)
    derived = _derived(samples)
    everything = {**samples, **derived}
    rows = [{"quantity": name, "ms": spread(ms), **ratios(ms, everything)} for name, ms in everything.items()]
    return rows + _spread_out(everything)


def _samples(bench: Bench, h: ModelObjective) -> Samples:
    """Return milliseconds, round by round."""
    theta = problems.weights(h)
    kept = h.evaluate(theta)
    hessian_product, ggn_product = kept.operator(hessian), kept.operator(gauss_newton)
    vector = kept.gradient.clone()

    def graph() -> None:
        evaluation = h.evaluate(theta)
        evaluation.operator(hessian)
        _ = evaluation.gradient

    actions = {
        PLAIN: problems.plain_gradient(h, theta),
        "loss": lambda: h.value(theta),
        "forward pass with graph": lambda: h.evaluate(theta),
        "gradient": lambda: h.evaluate(theta).gradient,
        "gradient and set-up of Hessian products": graph,
        FIRST_GGN: lambda: h.evaluate(theta).operator(gauss_newton)(vector),
        "Hessian product": lambda: hessian_product(vector),
        "GGN product": lambda: ggn_product(vector),
    }
    timed = {name: bench.stopwatch(action) for name, action in actions.items()}
    samples = interleave(timed, bench.budget(20, rounds=200))
    return {name: 1e3 * np.asarray(values) for name, values in samples.items()}


def _derived(t: Samples) -> Samples:
    """Return the set-up times, each a difference within a round."""
    return {
        "set-up of Hessian products": t["gradient and set-up of Hessian products"] - t["gradient"],
        "set-up of GGN products": t[FIRST_GGN] - t["GGN product"] - t["forward pass with graph"],
    }


def ratios(ms: NDArray[np.float64], t: Samples) -> dict[str, Spread]:
    """Return the ratios to the plain gradient and to ours, round by round."""
    return {"plain_ratio": spread(ms / t[PLAIN]), "ratio": spread(ms / t["gradient"])}


def _spread_out(t: Samples) -> list[dict[str, Any]]:
    """Return each product with its share of the set-up, on the gradient's batch and on one of its own."""
    setups = {
        ("hessian", "same"): t["set-up of Hessian products"],
        ("hessian", "independent"): t["gradient and set-up of Hessian products"],
        ("ggn", "same"): t["set-up of GGN products"],
        ("ggn", "independent"): t["set-up of GGN products"] + t["forward pass with graph"],
    }
    products = {"hessian": t["Hessian product"], "ggn": t["GGN product"]}
    return [
        {
            "curvature": curvature,
            "curvature_batch": where,
            "iterations": ITERATIONS,
            **ratios(products[curvature] + setup / ITERATIONS, t),
        }
        for (curvature, where), setup in setups.items()
    ]
