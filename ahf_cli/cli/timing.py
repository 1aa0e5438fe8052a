"""`ahf timing`: the costs of a study's operations and steps, measured on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ahf_cli.cli import session
from ahf_cli.cli.options import DEFAULT_RESULTS, Json, Quiet, Results, emit_json, print_tables, say
from ahf_cli.cli.show import StudyName
from ahf_cli.interruption import Interruption

if TYPE_CHECKING:  # slow to import
    import pandas as pd

    from ahf_cli.study.costs import Costs


def timing(
    study: StudyName, results: Results = DEFAULT_RESULTS, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Measure again what a gradient, a loss, a product and a step of each recipe cost: costs.json.

    Work and seconds in `ahf compare` follow from these costs.  A finished search measures them once.
    """
    from ahf_cli.cli.progress import Terminal
    from ahf_cli.search.cost import measure_costs
    from ahf_cli.study.find import find_study

    found = find_study(results, study)
    found.refuse_packed()
    config, stop = found.config(with_classes=True), Interruption()
    with found, stop.watched(quiet):
        found.lock()
        costs = measure_costs(config, found, Terminal(quiet), stop)
    if costs is None:
        raise session.interrupted()
    if as_json:
        emit_json(costs.model_dump())
        return
    products = "; ".join(f"{name} product {units:.2f}" for name, units in costs.products.items())
    say(f"gradient {1e3 * costs.gradient:.2f} ms, in its units: loss {costs.loss:.2f}; {products}")
    print_tables({f"{found.name}: a step as measured": _table(costs)})


def _table(costs: Costs) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "recipe": name, "ms": f"{1e3 * r.seconds:.2f}", "overhead, ms": f"{1e3 * r.overhead:.2f}",
            "gradients": f"{r.counts.gradients / r.counts.steps:.1f}",
            "products": f"{r.counts.products / r.counts.steps:.1f}",
            "losses": f"{r.counts.losses / r.counts.steps:.1f}",
            "units of a product": f"{r.product:.2f}", "units of set-up": f"{r.setup:.2f}",
        }
        for name, r in costs.recipes.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)
