"""The path of a GPU without one: on the meta device, which refuses host tensors, with host reads counted."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ahf_cli.optim import ModelObjective, compose
from ahf_cli.optim.precision import full_precision
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.structure import AnyStructure, Structure
from ahf_cli.search.pool import describe, is_infrastructure
from ahf_cli.tasks.catalogue import MODELS, make_model
from ahf_cli.tasks.models import LeNet
from ahf_cli.training.evaluate import evaluate
from ahf_cli.training.ranks import backend
from tests.test_training import task as small_task

READS, CONVOLUTIONS = "aten._local_scalar_dense", "aten.convolution"
SHAPE = (1, 28, 28)
IMAGES = [name for name, model in MODELS.items() if model.axes in (None, 3)]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, host reads and copies between devices; a read finds `answer`."""

    def __init__(self, answer: bool):
        super().__init__()  # type: ignore[no-untyped-call]
        self.answer, self.operations, self.copies = answer, Counter[str](), Counter[str]()
        self.reads = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.operations[name] += 1
        if name.startswith(READS):
            self.reads[self.line()] += 1
            read = args[0]
            return self.answer if read.dtype == torch.bool else 0.5 if read.is_floating_point() else 1
        if name.startswith(("aten._to_copy", "aten.copy_")):
            source, target = (
                (args[1], args[0]) if "copy_" in name else (args[0], (kwargs or {}).get("device"))
            )
            where = target.device if isinstance(target, Tensor) else torch.device(target or source.device)
            if source.is_meta and where.type != "meta":
                self.copies[self.line()] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def line() -> str:
        """Return the line of the package that asked."""
        frames = [f for f in traceback.extract_stack() if "/ahf_cli/" in f.filename]
        return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"


def objective(model: nn.Module, shape: tuple[int, ...] = SHAPE, examples: int = 16) -> ModelObjective:
    x = torch.empty(examples, *shape, device="meta")
    return ModelObjective(model.to("meta"), x, torch.empty(examples, dtype=torch.int64, device="meta"))


ITERATIONS = 20
"""Limit of CG iterations, for time."""


def short(structure: AnyStructure) -> AnyStructure:
    return replace(structure, max_iterations=ITERATIONS) if isinstance(structure, Structure) else structure


def step(recipe: str, trials: int, answer: bool = True) -> Watch:
    """Take a step of a recipe on LeNet and return the counts."""
    found = RECIPES[recipe]
    optimizer = compose(short(found.structure))
    h, other = objective(LeNet()), objective(LeNet())
    values = {name: torch.empty(trials, device="meta") for name in found.hyperparameters}
    state = optimizer.init(torch.empty(trials, h.layout.size, device="meta"), values)
    watch = Watch(answer)
    with watch:
        _, info = optimizer.step(state, h, other if optimizer.independent_batch else None)
    tensors = [v for v in vars(info).values() if isinstance(v, Tensor)]
    assert all(v.is_meta for v in tensors)
    return watch


def allowed(recipe: str) -> int:
    """One read in five CG iterations, kept iterates and line-search tries, and two a step."""
    structure = short(RECIPES[recipe].structure)
    if not isinstance(structure, Structure):
        return 2
    tries = 60 if structure.line_search == "armijo" else 0
    kept = len(structure.part("backtracking").kept(structure.max_iterations))
    return 2 + math.ceil(structure.max_iterations / 5) + math.ceil(tries / 5) + math.ceil(kept / 5)


@pytest.mark.parametrize(
    "recipe",  # `lbfgs` is an object a row, which reads its line search on the host
    [k for k, r in RECIPES.items() if not r.structure.squares and "optimizer" not in r.structure.chosen],
)
def test_a_step_runs_on_a_device_and_seldom_waits_for_it(recipe: str) -> None:
    for answer in (True, False):  # a loop that asks may hear either
        watch = step(recipe, 4, answer)
        assert sum(watch.reads.values()) <= allowed(recipe), watch.reads
        assert not watch.copies, watch.copies


@pytest.mark.parametrize("recipe", ["adam", "sgd_momentum", "rmsprop", "hf", "hf_martens", "hf_stable"])
def test_more_trials_take_no_more_operations(recipe: str) -> None:
    one, many = (sum(step(recipe, trials).operations.values()) for trials in (2, 20))
    assert many == one


@pytest.mark.parametrize("name", IMAGES)
def test_every_model_is_evaluated_and_differentiated_on_a_device(name: str) -> None:
    shape = SHAPE if name != "resnet34" else (3, 32, 32)
    h = objective(make_model(name, shape, 10), shape, examples=2)
    theta = torch.empty(2, h.layout.size, device="meta")
    with Watch(True) as watch:
        h.value(theta)
        here = h.evaluate(theta)
        here.prepare_hvp()
        assert here.gradient.shape == here.hvp(theta).shape == theta.shape
        here.vjp(here.loss_hessian()(here.jvp(theta)))
    assert not watch.reads and not watch.copies


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("name", [name for name in IMAGES if name != "resnet34"])
def test_trials_side_by_side_agree_with_trials_one_by_one(name: str, chain: bool) -> None:
    """`vectorized=True`, as on a GPU, with the values of a CPU."""
    torch.manual_seed(0)
    # In float32 rounding chooses between two nearly equal inputs of a max-pooling, and so another gradient.
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    model = make_model(name, SHAPE, 10).double()
    options: dict[str, Any] = {} if chain else {"chain": None, "vectorized": True}
    together = ModelObjective(model, x, torch.arange(3), **options)
    theta = torch.stack([p.detach() for p in [_row(model)] * 2]) * torch.tensor([[1.0], [0.9]])
    alone = ModelObjective(model, x, torch.arange(3), chain=None, vectorized=False)
    torch.testing.assert_close(together.value(theta), alone.value(theta))
    torch.testing.assert_close(
        together.evaluate(theta).gradient, alone.evaluate(theta).gradient, rtol=1e-8, atol=1e-10
    )


def _row(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_full_precision_is_switched_on_and_back() -> None:
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv)
    before = [place.fp32_precision for place in places]
    places[0].fp32_precision = "tf32"
    try:
        with pytest.raises(ZeroDivisionError), full_precision():
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
            raise ZeroDivisionError
        assert places[0].fp32_precision == "tf32"
    finally:
        for place, setting in zip(places, before, strict=True):
            place.fp32_precision = setting


@pytest.mark.parametrize(
    ("gpus", "processes", "expected"),
    [(1, 1, "nccl"), (2, 2, "nccl"), (1, 2, "gloo"), (0, 2, "gloo"), (8, 4, "nccl")],
)
def test_ranks_that_share_a_gpu_take_gloo(gpus: int, processes: int, expected: str) -> None:
    assert backend(gpus, processes) == expected


def test_a_lack_of_memory_on_a_gpu_names_the_settings_to_lower() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 8 GiB")
    said = describe(error)
    assert said == "CUDA out of memory: lower run.batch, the trials side by side, or task.batch_size"
    assert is_infrastructure(error)


def test_many_trials_are_evaluated_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = small_task(), list[int]()
    outputs = ModelObjective.outputs

    def watched(self: ModelObjective, parameters: Tensor) -> Tensor:
        seen.append(len(self.inputs) * len(parameters))
        return outputs(self, parameters)

    monkeypatch.setattr(ModelObjective, "outputs", watched)
    monkeypatch.setattr("ahf_cli.training.evaluate.MOST", 30)
    theta = task.initial(0).expand(7, -1)
    few = evaluate(task, theta, task.split.test)
    assert max(seen) <= 30 and sum(seen) == 7 * len(task.split.test)
    monkeypatch.setattr("ahf_cli.training.evaluate.MOST", 10**6)
    for name, values in evaluate(task, theta, task.split.test).items():
        torch.testing.assert_close(values, few[name])
