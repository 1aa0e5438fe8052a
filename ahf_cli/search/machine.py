"""A configuration on this machine: its data, device and processes, and their record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import InputError
from ahf_cli.interruption import command_line
from ahf_cli.recipes.structure import Whole

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.recipes.hyperparameters import Range
    from ahf_cli.search.worker import TaskSpec
    from ahf_cli.training.train import Plan


def task_spec(config: Config) -> TaskSpec:
    """Find data and device."""
    from ahf_cli.plugin import LOADED
    from ahf_cli.search.worker import TaskSpec
    from ahf_cli.tasks.datasets import DATA_SETS
    from ahf_cli.tasks.folder import locate
    from ahf_cli.training.environment import resolve_device

    device = resolve_device(config.run.device)
    task = config.task
    data = DATA_SETS[task.data]
    folder = locate(data=data) if data.files else None
    return TaskSpec(
        folder, task.split, task.batch_size, task.subset, device, task.model, task.loss, task.data,
        task.dtype, tuple(LOADED.values()),
    )  # fmt: skip


def refuse_classes(config: Config, names: Iterable[str], values: Mapping[str, float] | None = None) -> None:
    """Try out the optimizer classes among recipes; raises InputError with one line for each that fails.

    Args:
        config: ranges and task.
        names: names of recipes.
        values: hyperparameters; None for the middles and ends of all ranges.
    """
    from ahf_cli.recipes.hyperparameters import middle
    from ahf_cli.tasks.catalogue import make_model
    from ahf_cli.tasks.datasets import DATA_SETS
    from ahf_cli.training.outside import fault

    data, errors = DATA_SETS[config.task.data], []
    for recipe in (config.recipe(name) for name in names):
        if not (isinstance(recipe.structure, Whole) and recipe.structure.is_class):
            continue
        model = make_model(config.task.model, data.shape, data.outputs)
        space = config.space(recipe.name)
        tried = (
            [{key: of(found) for key, found in space.items()} for of in (middle, _low, _high)]
            if values is None
            else [values]
        )
        if found := fault(recipe, tried, model):
            errors.append(f"recipe {recipe.name}: {found}")
    if errors:
        raise InputError(errors)


def _low(found: Range) -> float:
    return found.low


def _high(found: Range) -> float:
    return found.high


def packages(config: Config, names: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of the packages, other than PyTorch, whose classes are recipes."""
    from ahf_cli.training.environment import version

    structures = [config.recipe(name).structure for name in names]
    classes = [s.name for s in structures if isinstance(s, Whole) and s.is_class]
    tops = dict.fromkeys(name.partition(".")[0] for name in classes)
    return {top: version(top) for top in tops if top != "torch"}


def used_plugins(config: Config) -> dict[str, bytes]:
    """Return the files of the plug-ins that a configuration's recipes, task or hyperparameters come from."""
    from ahf_cli.plugin import LOADED

    used, files = set(config.plugins.values()), {}
    for plugin in (p for p in LOADED.values() if p.digest in used):
        taken = plugin.path.name in files
        name = f"{plugin.path.stem}-{plugin.digest[:8]}.py" if taken else plugin.path.name
        files[name] = plugin.content
    return files


def train_size(config: Config) -> int:
    """Number of training images of a configuration's split."""
    from ahf_cli.tasks.datasets import training_size

    whole = training_size(config.task.data, config.task.split)
    return min(config.task.subset or whole, whole)


def plan_of(config: Config) -> Plan:
    """Return how each trial of a configuration trains."""
    from ahf_cli.training.train import Plan

    return Plan(
        steps=config.total_steps(train_size(config)),
        eval_every=config.train.eval_every,
        seed=config.seed,
        objective=config.search.objective,
        eval_subset=config.train.eval_subset,
        checkpoint_every=config.run.checkpoint_every,
        longer=config.train.longer,
        cap=config.metrics.loss.baseline,
    )


def workers_and_batch(config: Config, device: str) -> tuple[int, int]:
    """Processes, and trials side by side in each: one per core on a CPU, one with many trials on a GPU.

    On a CPU both are measured (docs/performance.md).  On a GPU, not measured: ten trials in the paper's
    design, whose first ten are drawn at random anyway, and up to 70 where trials are independent.
    """
    from ahf_cli.training.environment import cores

    if device == "cpu":
        return config.run.workers or cores(), config.run.batch or 1
    many = 10 if config.search.design == "paper" else min(70, config.search.trials)
    return config.run.workers or 1, config.run.batch or many


def threads_of(device: str) -> int:
    """Threads of one training process: one on a CPU, where parallelism is processes."""
    return 1 if device == "cpu" else 4


def manifest(config: Config, spec: TaskSpec, workers: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the record of this session's code, versions, machine and data.

    `names` are the recipes that it trains; by default the searched ones.
    """
    from ahf_cli.tasks.datasets import DATA_SETS
    from ahf_cli.tasks.folder import digests
    from ahf_cli.training.environment import describe

    fair, described = config.search.design == "fair", describe(spec.device)
    return {
        "command": command_line(),
        **described,
        "versions": described["versions"] | packages(config, names or config.searched),
        "workers": workers,
        "threads": 1 if spec.device == "cpu" else None,
        "seeds": {"training": config.seed, "sampler": config.seed},
        "metrics": config.metrics.as_data(),
        "data": digests(spec.folder, DATA_SETS[spec.data]) if spec.folder else {},
        "plan": dict.fromkeys(config.searched, config.search.trials),
        **({"rerun_plan": dict.fromkeys(config.searched, config.search.reruns)} if fair else {}),
    }
