"""The decorator that registers a differential equation."""

from __future__ import annotations

from collections.abc import Callable

from ahf_cli.plugin.loading import F, check_name, enter, guarded
from ahf_cli.tasks.datasets import DATA_SETS, of_equation


def equation(name: str) -> Callable[[F], F]:
    """Register a function () → `ahf_cli.tasks.equations.Equation` as `task.data`, for `least_squares`.

    The model is then a network for u, such as `tanh_64`, and `test_error` its distance to the solution.

    Raises:
        ValueError: a taken name, or a result that is no equation or has no terms.
    """
    check_name("data set", name)

    def register(function: F) -> F:
        from ahf_cli.tasks.equations import Equation

        enter("data set", name, DATA_SETS)
        made = guarded("data set", name, function)
        found = made()
        if not isinstance(found, Equation) or not found.terms:
            raise ValueError(
                f"data set {name!r}: the function must return an Equation with terms, got {found!r}"
            )
        DATA_SETS[name] = of_equation(name, name, len(found.second), found.count, made, found.fresh)
        return function

    return register
