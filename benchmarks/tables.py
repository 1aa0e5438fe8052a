"""Kept numbers as Markdown tables that are read as well in a terminal.  Imports nothing heavy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from benchmarks.cells import Row, at_least, at_most, markdown, number, percent, spread
from benchmarks.sections import SECTIONS, Section

Rows = list[Row]
PRODUCT_TARGETS = {"hessian": 0.45, "ggn": 0.4}
"""A product with its share of the set-up, in plain PyTorch gradients."""
STEP_AIMS = {"hessian": 6.0, "ggn": 6.0}
"""Another package's step in ours."""
WORKERS_AIM = 1.8
EVALUATION_TARGET = 0.15
HOURS_AIM = 7.0
CURVATURE_NAMES = {"gradient": "gradient", "hessian": "Hessian", "ggn": "GGN"}


def render(record: Row) -> str:
    """Return all tables of a record under headings."""
    machine = record["machine"]
    name = machine["gpu"] or machine["processor"]
    tables = [table for table in record["sections"].values() if table["rows"]]
    # The commonest, so that a later measurement of one table does not repeat this line at all others.
    ((usual, _),) = Counter(_provenance(table) for table in tables or [record]).most_common(1)
    parts = [f"{name}, {machine['cores']} cores, {machine['memory_gb']:g} GB, {machine['system']}. {usual}"]
    for section in SECTIONS:
        table = record["sections"].get(section)
        if table and table["rows"]:
            title, draw = DRAWN[section]
            own = _provenance(table)
            parts += [f"### {title}", *([own] if own != usual else []), *draw(table["rows"])]
    return "\n\n".join(parts)


def _provenance(table: Row) -> str:
    """Say date, commit and versions of the numbers."""
    commit = (table["commit"] or "unknown")[:7] + (" with changes" if table["dirty"] else "")
    quick = " A quick run: few repeats." if table["quick"] else ""
    torch = f"torch {table['versions']['torch']}"
    load = f"load before the start {table['load_before']:g}"
    return f"{table['date'][:10]}, commit {commit}, {torch}, {load}.{quick}"


def products(rows: Rows) -> list[str]:
    """Draw the cost of each evaluation, and products with their set-up against the targets."""
    plain = [(r["threads"], r["quantity"], spread(r["ms"]), *_ratios(r)) for r in rows if "quantity" in r]
    shared = [r for r in rows if "curvature" in r]
    cells = [
        (
            r["threads"], CURVATURE_NAMES[r["curvature"]], r["curvature_batch"], *_ratios(r),
            at_most(r["plain_ratio"]["median"], PRODUCT_TARGETS[r["curvature"]]),
        )
        for r in shared
    ]  # fmt: skip
    return [
        markdown(("threads", "LeNet, batch 128", "ms", *RATIOS), plain),
        f"A product with its share of the set-up, over {shared[0]['iterations']} CG iterations:",
        markdown(("threads", "product", "curvature batch", *RATIOS, "target (plain gradients)"), cells),
    ]


RATIOS = ("ratio to a plain gradient", "to our gradient")


def _ratios(r: Row) -> tuple[str, str]:
    return spread(r["plain_ratio"], 2), spread(r["ratio"], 2)


def steps(rows: Rows) -> list[str]:
    """Draw the parts of a step's time."""
    cells = []
    for r in rows:
        ms = r["ms"]
        medians = {part: number(value["median"]) for part, value in ms.items()}
        cells.append(
            (
                r["threads"], r["recipe"], CURVATURE_NAMES[r["curvature"]], r["iterations"],
                spread(ms["step"]), f"{medians['product']} ({r['products']})", medians["gradient"],
                medians["set-up"], medians["loss"], medians["rest"], percent(r["share"]),
            )
        )  # fmt: skip
    header = (
        "threads", "recipe", "curvature", "CG iterations", "ms per step", "products (count)",
        "gradient", "curvature set-up", "losses", "rest", "share of the rest",
    )  # fmt: skip
    return [markdown(header, cells)]


def recipes(rows: Rows) -> list[str]:
    """Draw steps with explicit layers and by automatic differentiation, and their memory."""
    cells = [
        (
            r["threads"], r["recipe"], r["iterations"], spread(r["explicit"]), spread(r["automatic"]),
            spread(r["ratio"], 2), *(_memory(r[key]) for key in ("explicit_mb", "automatic_mb")),
        )
        for r in rows
    ]  # fmt: skip
    header = (
        "threads", "recipe", "CG iterations", "ms a step, default", "ms a step, automatic differentiation",
        "automatic / default", "peak MB, default (at start)", "peak MB, automatic (at start)",
    )  # fmt: skip
    return [markdown(header, cells)]


def _memory(mb: Row) -> str:
    return f"{mb['peak']:.0f} ({mb['start']:.0f})"


def others(rows: Rows) -> list[str]:
    """Draw our time beside the times of other packages."""
    cells: list[tuple[object, ...]] = []
    for r in rows:
        if "absent" in r:
            cells.append((r["threads"], "", f"{r['by']} is not installed: pip install {r['by']}", *[""] * 4))
            continue
        name, aim = CURVATURE_NAMES[r["curvature"]], ""
        what = name if r["curvature"] == "gradient" else f"{name} product"
        if r["kind"] == "step":
            what = f"HF step of {r['iterations']} CG iterations, {what}s"
            if r["by"] != "ahf":
                aim = at_least(r["ratio"]["median"], STEP_AIMS[r["curvature"]])
        ratios = spread(r["ratio"], 2), spread(r["plain_ratio"], 2)
        cells.append((r["threads"], what, r["by"], spread(r["ms"]), *ratios, aim))
    header = ("threads", "LeNet, batch 128", "by", "ms", "ratio to ours", "to a plain gradient", "aim")
    return [markdown(header, cells)]


def trials(rows: Rows) -> list[str]:
    """Draw the cost of K trials side by side."""
    cells = []
    alone: dict[int, float] = {}
    for r in rows:
        ms, rate = r["ms"], r["trial_steps_per_second"]["median"]
        base = alone.setdefault(r["threads"], rate)
        cells.append(
            (
                r["threads"], r["trials"], *(spread(ms[k]) for k in (*PARTS, "step")),
                number(rate), f"{rate / base:.2f}", f"{r['peak_mb']:.0f} ({r['start_mb']:.0f})",
            )
        )  # fmt: skip
    iterations = rows[0]["iterations"]
    header = (
        "threads", "K", "ms gradient", "ms Hessian product", "ms GGN product", "ms CG iteration", "ms step",
        "steps × trials / s", "× K = 1", "peak MB (at start)",
    )  # fmt: skip
    return [f"Steps of `hf` with {iterations} CG iterations.", markdown(header, cells)]


PARTS = ("gradient", "hessian", "ggn", "cg_iteration")


def kernels(rows: Rows) -> list[str]:
    """Draw the number of operations, by path and K."""
    cells = [(r["path"], r["trials"], *(r["operations"][k] for k in PARTS)) for r in rows]
    header = ("path", "K", "gradient", "Hessian product", "GGN product", "CG iteration")
    return [
        "Operations that start a kernel on a GPU, counted on PyTorch's meta device; LeNet, batch 128:",
        markdown(header, cells),
    ]


def classes(rows: Rows) -> list[str]:
    """Draw the last losses of each optimizer on each problem."""
    names = list(dict.fromkeys(r["optimizer"] for r in rows))
    cells = []
    for problem in dict.fromkeys(r["problem"] for r in rows):
        own = {r["optimizer"]: r for r in rows if r["problem"] == problem}
        first = next(iter(own.values()))["first"]
        ends = [f"{own[n]['last']:.4g}" if len(own[n]["curve"]) > 1 else "not installed" for n in names]
        cells.append((problem, f"{first:.3g}", *ends, max(own[n]["rises"] for n in names[:2])))
    header = ("problem", "loss at first", *names, "rises of ours")
    passes = rows[0]["passes"]
    return [
        f"Loss after {passes} forward passes, on full batches, from one draw of each problem in float32:",
        markdown(header, cells),
        "![loss against forward passes](classes.svg)",
    ]


def large(rows: Rows) -> list[str]:
    """Draw time and memory of a step on a large network."""
    ours = rows[0]["seconds"]["median"]
    cells = [
        (
            r["optimizer"], r["parameters"], spread(r["seconds"]), f"{ours / r['seconds']['median']:.2f}",
            spread(r["vectors"]), f"{r['loss']:.3g}",
        )
        for r in rows
    ]  # fmt: skip
    header = ("optimizer", "parameters", "CPU seconds a step", "ours / it", "peak in vectors", "loss after")
    return [
        "Steps of at most 20 CG iterations at batch 128; a vector is one number a parameter:",
        markdown(header, cells),
    ]


def growth(rows: Rows) -> list[str]:
    """Draw the growth of the costs."""
    cells = []
    for r in rows:
        medians = {part: value["median"] for part, value in r["ms"].items()}
        ratios = (
            f"{medians[part] / medians['plain']:.2f} ({medians[part] / medians['gradient']:.2f})"
            for part in PARTS
        )
        cells.append(
            (
                r["threads"], r["model"], f"{r['parameters']:,}", r["batch"],
                *(spread(r["ms"][part]) for part in ("plain", *PARTS)), *ratios,
            )
        )  # fmt: skip
    header = (
        "threads", "network", "parameters", "batch", "ms plain gradient", "ms gradient",
        "ms Hessian product", "ms GGN product", "ms CG iteration", "gradient / plain (/ ours)",
        "Hessian / plain (/ ours)", "GGN / plain (/ ours)", "CG iteration / plain (/ ours)",
    )  # fmt: skip
    return [markdown(header, cells)]


def machine(rows: Rows) -> list[str]:
    """Draw the arithmetic of dense convolution beside the time taken."""
    rates, limits = [], []
    for r in rows:
        rate = r["gflops"]["median"]
        rates.append((r["threads"], spread(r["gflops"])))
        for a in r["arithmetic"]:
            least, ms = a["mflop"] / rate, a["ms"]["median"]
            limits.append(
                (
                    r["threads"], a["quantity"], f"{a['mflop']:.1f}", number(least), spread(a["ms"]),
                    f"{ms / least:.1f}",
                )
            )  # fmt: skip
    header = ("threads", "LeNet, batch 128", "MFLOP, dense", "ms at that rate", "ms taken", "taken / dense")
    return [
        markdown(("threads", "GFLOP/s of a 1024² float32 matrix product"), rates),
        markdown(header, limits),
    ]


def variants(rows: Rows) -> list[str]:
    """Draw every implementation of a product."""
    cells = [
        (
            r["threads"], CURVATURE_NAMES[r["curvature"]], r["trials"], r["variant"], spread(r["set_up"]),
            spread(r["product"]), *_ratios(r),
        )
        for r in rows
    ]  # fmt: skip
    header = ("threads", "product", "K", "implementation", "ms set-up a step", "ms product", *RATIOS)
    return [
        f"Times are per trial. The ratios share the set-up among {rows[0]['iterations']} CG iterations.",
        markdown(header, cells),
    ]


def evaluation(rows: Rows) -> list[str]:
    """Draw whole-set evaluation by chunk size."""
    cells = [(r["threads"], r["chunk"], spread(r["ms"])) for r in rows]
    return [markdown(("threads", "images at once", f"ms for {rows[0]['images']:,} images"), cells)]


def workers(rows: Rows) -> list[str]:
    """Draw the throughput of a search by workers, and the estimate for the paper's preset."""
    timed = [r for r in rows if "workers" in r]
    cells = [
        (
            r["workers"], spread(r["seconds"]), spread(r["trials_per_hour"]), spread(r["ratio"], 2),
            at_least(r["ratio"]["median"], WORKERS_AIM) if r["workers"] == 2 else "",
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
            f"{r['evaluation_share']:.0%}", at_most(r["evaluation_share"], EVALUATION_TARGET, share=True),
        )
        for name, r in found["recipes"].items()
    ]  # fmt: skip
    header = ("recipe", "trials", "s per step", "CG iterations", "minutes per trial", "evaluation", "target")
    return [
        f"`ahf search --dry-run`: {found['steps']} steps a trial, {found['evaluations']} evaluations, "
        f"{found['workers']} workers, together {found['hours']:.1f} hours "
        f"({at_most(found['hours'], HOURS_AIM)}):",
        markdown(header, cells),
    ]


DRAWN: dict[Section, tuple[str, Callable[[Rows], list[str]]]] = {
    "products": ("Curvature products", products),
    "steps": ("The parts of a step", steps),
    "recipes": ("Steps and memory of each recipe", recipes),
    "others": ("Beside other packages", others),
    "trials": ("K trials side by side", trials),
    "variants": ("Implementations of a product", variants),
    "evaluation": ("Evaluation on whole sets", evaluation),
    "workers": ("Workers, and the paper's search", workers),
    "growth": ("Growth with batch size and parameters", growth),
    "machine": ("Dense arithmetic", machine),
    "kernels": ("Operations on a GPU", kernels),
    "classes": ("The torch optimizers at their defaults", classes),
    "large": ("A step on four million parameters", large),
}
