"""Kept numbers as Markdown tables that are read as well in a terminal.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from benchmarks.sections import SHOWN, Section

Row = dict[str, Any]
Rows = list[Row]
PRODUCT_TARGETS = {"hessian": (1.6, 1.25), "ggn": (1.5, 1.2)}
OVERHEAD_TARGETS = (0.05, 0.03)
STEP_AIMS = {"hessian": 3.0, "ggn": 2.0}
WORKERS_AIM = 1.8
EVALUATION_TARGET = 0.15
HOURS_AIM = 7.0
AIMED_ITERATIONS = 50
"""The aims of steps and solvers are for steps of this length: shorter ones are not judged."""
CURVATURE_NAMES = {"hessian": "Hessian", "ggn": "GGN"}


def render(record: Row) -> str:
    """Return all tables of a record under headings."""
    machine = record["machine"]
    name = machine["gpu"] or machine["processor"]
    usual = _provenance(record)
    parts = [f"{name}, {machine['cores']} cores, {machine['memory_gb']:g} GB, {machine['system']}. {usual}"]
    for section in SHOWN:
        table = record["sections"].get(section)
        if table and table["rows"]:
            title, draw = DRAWN[section]
            own = _provenance(table)
            parts += [f"### {title}", *([own] if own != usual else []), *draw(table["rows"])]
    return "\n\n".join(parts)


def _provenance(table: Row) -> str:
    """Say when and from what the numbers come."""
    commit = (table["commit"] or "unknown")[:7] + (" with changes" if table["dirty"] else "")
    quick = " A quick run: few repeats." if table["quick"] else ""
    torch = f"torch {table['versions']['torch']}"
    load = f"load before the start {table['load_before']:g}"
    return f"{table['date'][:10]}, commit {commit}, {torch}, {load}.{quick}"


def products(rows: Rows) -> list[str]:
    """Draw what each evaluation costs, and products with their set-up against the targets."""
    plain = [
        (r["threads"], r["quantity"], _spread(r["ms"]), _spread(r["ratio"], 2))
        for r in rows
        if "quantity" in r
    ]
    spread_out = []
    for r in rows:
        if "curvature" not in r:
            continue
        ratio = r["ratio"]["median"]
        now, later = PRODUCT_TARGETS[r["curvature"]]
        curvature, where = CURVATURE_NAMES[r["curvature"]], r["curvature_batch"]
        verdicts = (_at_most(ratio, now), _at_most(ratio, later))
        spread_out.append((r["threads"], curvature, where, _spread(r["ratio"], 2), *verdicts))
    iterations = next(r["iterations"] for r in rows if "iterations" in r)
    return [
        markdown(("threads", "LeNet, batch 128", "ms", "ratio to a gradient"), plain),
        f"A product with its share of the set-up, over {iterations} CG iterations, as ratio to a gradient:",
        markdown(("threads", "product", "curvature batch", "ratio", "target", "later aim"), spread_out),
    ]


def steps(rows: Rows) -> list[str]:
    """Draw where the time of a step goes."""
    cells = []
    for r in rows:
        ms, share, (now, later) = r["ms"], r["share"]["median"], OVERHEAD_TARGETS
        medians = {part: _number(value["median"]) for part, value in ms.items()}
        cells.append(
            (
                r["threads"], r["recipe"], CURVATURE_NAMES[r["curvature"]], r["iterations"],
                _spread(ms["step"]), f"{medians['product']} ({r['products']})", medians["gradient"],
                medians["set-up"], medians["loss"], medians["rest"], _percent(r["share"]),
                _at_most(share, now, percent=True), _at_most(share, later, percent=True),
            )
        )  # fmt: skip
    header = (
        "threads", "recipe", "curvature", "CG iterations", "ms per step", "products (count)",
        "gradient", "curvature set-up", "losses", "rest", "share of the rest", "target", "later aim",
    )  # fmt: skip
    return [markdown(header, cells)]


def others(rows: Rows) -> list[str]:
    """Draw our time beside that of other packages."""
    cells = []
    for r in rows:
        what = CURVATURE_NAMES[r["curvature"]] + " product"
        if r["kind"] == "step":
            what = f"HF step of {r['iterations']} CG iterations, {what}s"
        if "ms" in r:
            aimed = r.get("iterations") == AIMED_ITERATIONS and r["by"] != "ahf"
            verdict = _at_least(r["ratio"]["median"], STEP_AIMS[r["curvature"]]) if aimed else ""
            measured = (_spread(r["ms"]), _spread(r["ratio"], 2), verdict)
        else:
            measured = (f"not installed: pip install {r['by']}", "", "")
        cells.append((r["threads"], what, r["by"], *measured))
    return [markdown(("threads", "LeNet, batch 128", "by", "ms", "ratio to ours", "aim"), cells)]


def trials(rows: Rows) -> list[str]:
    """Draw what K trials side by side cost."""
    cells = []
    alone: dict[int, float] = {}
    for r in rows:
        ms, rate = r["ms"], r["trial_steps_per_second"]["median"]
        base = alone.setdefault(r["threads"], rate)
        cells.append(
            (
                r["threads"], r["trials"], *(_spread(ms[k]) for k in _PER_TRIAL), _number(rate),
                f"{rate / base:.2f}", f"{r['peak_mb']:.0f} ({r['start_mb']:.0f})",
            )
        )  # fmt: skip
    iterations = rows[0]["iterations"]
    header = (
        "threads", "K", "ms gradient", "ms Hessian product", "ms GGN product", "ms CG iteration", "ms step",
        "steps × trials / s", "× K = 1", "peak MB (at start)",
    )  # fmt: skip
    return [f"Steps of `hf` with {iterations} CG iterations.", markdown(header, cells)]


_PER_TRIAL = ("gradient", "hessian", "ggn", "cg_iteration", "step")


def growth(rows: Rows) -> list[str]:
    """Draw how cost grows."""
    cells = []
    for r in rows:
        ms = r["ms"]
        gradient = ms["gradient"]["median"]
        ratios = (f"{ms[k]['median'] / gradient:.2f}" for k in ("hessian", "ggn", "cg_iteration"))
        cells.append(
            (
                r["threads"], r["model"], f"{r['parameters']:,}", r["batch"],
                *(_spread(ms[k]) for k in _PER_TRIAL[:-1]), *ratios,
            )
        )  # fmt: skip
    header = (
        "threads", "network", "parameters", "batch", "ms gradient", "ms Hessian product", "ms GGN product",
        "ms CG iteration", "Hessian / gradient", "GGN / gradient", "CG iteration / gradient",
    )  # fmt: skip
    return [markdown(header, cells)]


def machine(rows: Rows) -> list[str]:
    """Draw the arithmetic limit, and the operators of a product."""
    rates, limits, parts = [], [], []
    for r in rows:
        rate = r["gflops"]["median"]
        rates.append((r["threads"], _spread(r["gflops"])))
        for a in r["arithmetic"]:
            least = a["mflop"] / rate
            ms = a["ms"]["median"]
            limits.append(
                (
                    r["threads"], a["quantity"], f"{a['mflop']:.1f}", _number(least), _spread(a["ms"]),
                    f"{ms / least:.1f}", f"{a['mflop'] / ms:.1f}",
                )
            )  # fmt: skip
        tables = r["profile"].values()
        for n, operators in enumerate(zip_longest(*tables), 1):
            found = [f"{100 * o['share']:.1f} % {o['operator']}" if o else "" for o in operators]
            parts.append((r["threads"], n, *found))
    header = ("threads", "LeNet, batch 128", "MFLOP", "ms at that rate", "ms", "measured / limit", "GFLOP/s")
    return [
        markdown(("threads", "GFLOP/s of a 1024² float32 matrix product"), rates),
        markdown(header, limits),
        "Time by operator, without what it calls, of all time in operators:",
        markdown(("threads", "", *rows[0]["profile"]), parts),
    ]


def variants(rows: Rows) -> list[str]:
    """Draw every way to a product."""
    cells = []
    for r in rows:
        measured = (
            (f"not available: {r['absent']}", "", "")
            if "absent" in r
            else (_spread(r["set_up"]), _spread(r["product"]), _spread(r["ratio"], 2))
        )
        cells.append((r["threads"], CURVATURE_NAMES[r["curvature"]], r["trials"], r["way"], *measured))
    header = (
        "threads", "product", "K", "way", "ms set-up a step", "ms product",
        f"ratio to a gradient, over {rows[0]['iterations']} CG iterations",
    )  # fmt: skip
    return ["Times are per trial.", markdown(header, cells)]


def evaluation(rows: Rows) -> list[str]:
    """Draw whole-set evaluation by chunk size."""
    cells = [(r["threads"], r["chunk"], _spread(r["ms"])) for r in rows]
    return [markdown(("threads", "images at once", f"ms for {rows[0]['images']:,} images"), cells)]


def workers(rows: Rows) -> list[str]:
    """Draw the throughput of a search by workers, and the estimate for the paper's preset."""
    timed = [r for r in rows if "workers" in r]
    cells = [
        (
            r["workers"], _spread(r["seconds"]), _spread(r["trials_per_hour"]), _spread(r["ratio"], 2),
            _at_least(r["ratio"]["median"], WORKERS_AIM) if r["workers"] == 2 else "",
        )
        for r in timed
    ]  # fmt: skip
    if not timed:
        return []
    parts = [
        f"`ahf search` of equal trials of `hf`, {timed[0]['trials']} trials of {timed[0]['steps']} steps, "
        "start-up included:",
        markdown(("workers", "seconds", "trials an hour", "× one worker", "aim"), cells),
    ]
    for r in rows:
        if "estimate" in r:
            parts += _estimate(r["estimate"])
    return parts


def _estimate(found: Row) -> list[str]:
    cells = [
        (
            name, r["trials"], f"{r['seconds_per_step']:.3f}", f"{r['cg_iterations']:.1f}",
            f"{r['seconds_per_trial'] / 60:.1f}",
            f"{r['evaluation_share']:.0%}", _at_most(r["evaluation_share"], EVALUATION_TARGET, percent=True),
        )
        for name, r in found["recipes"].items()
    ]  # fmt: skip
    header = ("recipe", "trials", "s per step", "CG iterations", "minutes per trial", "evaluation", "target")
    return [
        f"`ahf search --dry-run`: {found['steps']} steps a trial, {found['evaluations']} evaluations, "
        f"{found['workers']} workers, together {found['hours']:.1f} hours "
        f"({_at_most(found['hours'], HOURS_AIM)}):",
        markdown(header, cells),
    ]


DRAWN: dict[Section, tuple[str, Callable[[Rows], list[str]]]] = {
    "products": ("Curvature products", products),
    "steps": ("Where the time of a step goes", steps),
    "others": ("Beside other packages", others),
    "trials": ("K trials side by side", trials),
    "variants": ("Ways to a product", variants),
    "evaluation": ("Evaluation on whole sets", evaluation),
    "workers": ("Workers, and the paper's search", workers),
    "growth": ("Growth with batch size and parameters", growth),
    "machine": ("Arithmetic limit and profile", machine),
}


def markdown(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Draw a Markdown table with aligned columns; the first line is the header."""
    cells = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[n]) for line in cells)) for n in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _number(value: float, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def _spread(s: Row, digits: int | None = None) -> str:
    """Write median (low quartile – high quartile)."""
    if digits is None:
        digits = 0 if s["median"] >= 100 else 1 if s["median"] >= 10 else 2
    return f"{_number(s['median'], digits)} ({_number(s['low'], digits)} – {_number(s['high'], digits)})"


def _percent(s: Row) -> str:
    return _spread({key: 100 * s[key] for key in ("median", "low", "high")}, 1) + " %"


def _at_most(value: float, target: float, percent: bool = False) -> str:
    over = value - target
    limit, missed = (
        (f"{100 * target:g} %", f"{100 * over:.1f} points") if percent else (f"{target:g}", f"{over:.2f}")
    )
    return f"≤ {limit}: " + ("met" if over <= 0 else f"missed by {missed}")


def _at_least(value: float, target: float) -> str:
    return f"≥ {target:g}: " + ("met" if value >= target else f"missed by {target - value:.2f}")
