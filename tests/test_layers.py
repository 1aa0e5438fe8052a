"""Explicit layers: which models they serve, and their numbers against dense derivatives and differences."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import ahf_cli.optim.layers.compiled as compiled
import ahf_cli.optim.layers.selected as selected
from ahf_cli.optim import (
    CGResult,
    ModelObjective,
    Operator,
    conjugate_gradient,
    gauss_newton,
    hessian,
)
from ahf_cli.optim.layers.chain import Chain
from ahf_cli.optim.layers.record import record
from ahf_cli.optim.losses import SquaredError
from ahf_cli.optim.objective import Regularized
from ahf_cli.optim.operators import Curvature
from ahf_cli.optim.published import PublishedRules
from ahf_cli.optim.replay import Replayed, replayed
from tests.problems import dense_loss, dense_outputs, rows

Conv = nn.Conv2d


def head(entries: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(entries, 3)]


CHAINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (
        lambda: nn.Sequential(
            Conv(1, 2, 5), nn.MaxPool2d(2), nn.ReLU(), Conv(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), *head(3)
        ),
        (1, 13, 12),
    ),
    "padding, overlap, ceil": (
        lambda: nn.Sequential(
            Conv(3, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            Conv(2, 9, 3, padding=(1, 0)), nn.ReLU(), nn.MaxPool2d(2, 1, padding=1), *head(108),
        ),
        (3, 6, 8),
    ),
    "no ReLU, no bias": (
        lambda: nn.Sequential(
            Conv(2, 2, (2, 4), bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3, bias=False)
        ),
        (2, 5, 8),
    ),
    "dilated pooling": (
        lambda: nn.Sequential(
            Conv(1, 17, 1), nn.ReLU(), nn.MaxPool2d(2, dilation=2, stride=1), *head(17 * 4)
        ),
        (1, 4, 4),
    ),
    "smooth": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)),
        (4,),
    ),
    "sequences": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), *head(12)), (4, 2)),
}  # fmt: skip


def objective_of(name: str, examples: int = 4, trials: int = 0) -> ModelObjective:
    """A batch for one of `CHAINS`; with `trials` one batch each."""
    make, shape = CHAINS[name]
    generator = torch.Generator().manual_seed(0)
    lead = (trials, examples) if trials else (examples,)
    x = torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, lead, generator=generator)
    return ModelObjective(make().double(), x, y, own_batches=bool(trials))


@pytest.fixture(params=["compiled", "pytorch"])
def maps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations of the maps at selected positions on a CPU."""
    monkeypatch.setattr(selected, "numerics", lambda device: request.param)
    return str(request.param)


@pytest.mark.long
def test_triton_kernels_equal_dense_maps() -> None:
    """In a process of its own: Triton decides at its import whether its interpreter runs."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.triton_interpreted"], capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "lenet: 2 layers", "padding, overlap, ceil: 2 layers", "no ReLU, no bias: 1 layers",
        "dilated pooling: 1 layers",
    ]  # fmt: skip


def test_this_installation_has_the_compiled_maps() -> None:
    assert compiled.REASON == "" and compiled.numerics("cpu") == "compiled"


@pytest.mark.parametrize(
    ("geometry", "error", "line"),
    [(b"", ValueError, "geometry has another size"), ("x", TypeError, "bytes"), (None, TypeError, "bytes")],
)
def test_the_compiled_maps_refuse_other_sizes(geometry: object, error: type[Exception], line: str) -> None:
    for name, addresses in (("forward", 7), ("input", 6), ("weight", 7), ("block", 5)):
        with pytest.raises(error, match=line):
            getattr(selected.maps(), name)(geometry, 0, *[0] * addresses)


@pytest.mark.long
def test_triton_kernels_compile_for_a_gpu() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["_forward", "_to_input", "_to_weight"]


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import ahf_cli.optim.layers.triton_maps as maps
sizes = {
    "image": 880, "width": 12, "depth": 6, "channels": 16, "places": 16, "rows": 5, "columns": 5,
    "output": 272, "channel_step": 16, "place_step": 1, "block": maps.BLOCK,
}
reach = {
    "numbers": 864, "pooled_rows": 4, "pooled_columns": 4, "stride_down": 2, "stride_right": 2,
    "pad_down": 0, "pad_right": 0, "reach_down": 3, "reach_right": 3,
}
for kernel, own in (
    (maps._forward, {"biased": True}), (maps._to_input, reach),
    (maps._to_weight, {"chunk": maps.CHUNK, "lanes": 64}),
):
    fixed = {**sizes, **own, "two": True}
    for number in ("*fp32", "*fp64"):
        kinds = {n: "i32" if n in ("images", "trials") or "row" in n else number for n in kernel.arg_names}
        kinds |= {"at": "*i32"} | dict.fromkeys(fixed, "constexpr")
        values = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(kernel, kinds, values)
        assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print(kernel.__name__)
"""


@pytest.mark.parametrize("own_batches", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_rows_of_a_linearization_are_a_linearization(name: str, own_batches: bool, maps: str) -> None:
    objective = objective_of(name, trials=4 if own_batches else 0)
    decayed = Regularized(objective, torch.linspace(0, 1, 4, dtype=torch.float64)[:, None])
    theta, v, some = rows(objective, 4), rows(objective, 4, seed=2), torch.tensor([3, 1])
    for curvature in (hessian, gauss_newton):
        here = decayed.evaluate(theta)
        whole = here.operator(curvature)(v)
        part = here.select(some)
        assert part is not None
        torch.testing.assert_close(part.operator(curvature)(v[some]), whole[some])
        torch.testing.assert_close(part.gradient, here.gradient[some])
        torch.testing.assert_close(part.loss, here.loss[some])
        torch.testing.assert_close(part.squared_gradients(), here.squared_gradients()[some])


@pytest.mark.parametrize("curvature", [hessian, gauss_newton])
def test_captured_products_repeat_without_the_host(
    curvature: Curvature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selected, "numerics", lambda device: "cuda")
    objective = objective_of("lenet")
    here = objective.evaluate(rows(objective, 3))
    operator = here.operator(curvature)
    captures: list[int] = []

    def traced(product: Operator, vectors: Tensor) -> Callable[[], Tensor]:
        """Record the operations of a product once; as on a GPU, the host takes no part in later ones."""
        captures.append(1)
        graph = make_fx(lambda v: product(v))(vectors)
        return lambda: graph(vectors)

    def solve(product: Operator) -> CGResult:
        return conjugate_gradient(
            product, torch.ones(3, dtype=torch.float64), here.gradient, torch.zeros_like(here.gradient),
            PublishedRules(), 8,
        )  # fmt: skip

    plain, captured = solve(operator), solve(Replayed(operator, traced))
    assert captures == [1] and plain.products.min() == 8
    for name, value in vars(plain).items():
        assert not isinstance(value, Tensor) or torch.equal(value, getattr(captured, name)), name


def test_graphs_are_taken_only_on_a_gpu_and_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AHF_CUDA_GRAPHS", raising=False)
    assert replayed(torch.neg, torch.device("cuda")) is torch.neg
    monkeypatch.setenv("AHF_CUDA_GRAPHS", "yes")
    assert replayed(torch.neg, torch.device("cpu")) is torch.neg
    assert isinstance(replayed(torch.neg, torch.device("cuda")), Replayed)


@pytest.mark.parametrize("name", CHAINS)
def test_products_of_explicit_layers_equal_dense_ones(name: str, maps: str) -> None:
    objective = objective_of(name)
    assert objective.chain is not None
    theta, v = rows(objective, 2), rows(objective, 2, seed=2)
    here = objective.evaluate(theta)
    exact, outer, tangent = here.operator(hessian)(v), here.operator(gauss_newton)(v), here.jvp(v)
    for k in range(2):
        loss, outputs = dense_loss(objective), dense_outputs(objective)
        torch.testing.assert_close(objective.outputs(theta)[k], outputs(theta[k]), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(here.loss[k], loss(theta[k]))
        torch.testing.assert_close(here.gradient[k], torch.func.grad(loss)(theta[k]), rtol=1e-11, atol=1e-12)
        curved = torch.func.jvp(torch.func.grad(loss), (theta[k],), (v[k],))[1]
        torch.testing.assert_close(exact[k], curved, rtol=1e-10, atol=1e-11)
        image = torch.func.jvp(outputs, (theta[k],), (v[k],))[1]
        torch.testing.assert_close(tangent[k], image, rtol=1e-11, atol=1e-12)
        p = torch.softmax(outputs(theta[k]), -1)
        cotangent = (p * image - p * (p * image).sum(-1, keepdim=True)) / len(p)
        expected = torch.func.vjp(outputs, theta[k])[1](cotangent)[0]
        torch.testing.assert_close(outer[k], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", CHAINS)
def test_products_of_explicit_layers_equal_central_differences(name: str) -> None:
    objective = objective_of(name)
    theta, v = rows(objective, 1), rows(objective, 1, seed=2)
    here, step = objective.evaluate(theta), 1e-6

    def difference(f: Callable[[Tensor], Tensor]) -> Tensor:
        return (f(theta + step * v) - f(theta - step * v)) / (2 * step)

    slope = difference(objective.value)
    torch.testing.assert_close((here.gradient * v).sum(1), slope, rtol=1e-7, atol=1e-8)
    change = difference(lambda at: objective.evaluate(at).gradient)
    torch.testing.assert_close(here.operator(hessian)(v), change, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(here.jvp(v), difference(objective.outputs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CHAINS)
def test_squared_gradients_of_explicit_layers_are_means_over_examples(name: str, maps: str) -> None:
    objective = objective_of(name)
    theta = rows(objective, 2)
    found = objective.evaluate(theta).squared_gradients()
    for k in range(2):
        each = [
            ModelObjective(objective.model, x[None], y[None], chain=None).evaluate(theta[k : k + 1]).gradient
            for x, y in zip(objective.inputs, objective.targets, strict=True)
        ]
        expected = torch.cat(each).square().mean(dim=0)
        torch.testing.assert_close(found[k], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["lenet", "smooth"])
def test_each_trial_can_have_its_own_batch(name: str, maps: str) -> None:
    objective = objective_of(name, trials=3)
    theta, v = rows(objective, 3), rows(objective, 3, seed=2)
    for chain in (Chain.of, None):
        together = ModelObjective(
            objective.model, objective.inputs, objective.targets, own_batches=True, chain=chain
        ).evaluate(theta)
        for k in range(3):
            alone = ModelObjective(objective.model, objective.inputs[k], objective.targets[k])
            here = alone.evaluate(theta[k : k + 1])
            torch.testing.assert_close(together.loss[k], here.loss[0])
            torch.testing.assert_close(together.hvp(v)[k], here.hvp(v[k : k + 1])[0], rtol=1e-10, atol=1e-11)
            torch.testing.assert_close(together.squared_gradients()[k], here.squared_gradients()[0])


def test_a_loss_without_a_closed_gradient_serves_too() -> None:
    x, y = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    model = CHAINS["smooth"][0]().double()
    ours, graph = (ModelObjective(model, x, y, SquaredError(), chain=c) for c in (Chain.of, None))
    theta, v = rows(ours, 2), rows(ours, 2, seed=2)
    here, there = ours.evaluate(theta), graph.evaluate(theta)
    torch.testing.assert_close(here.gradient, there.gradient)
    torch.testing.assert_close(here.operator(hessian)(v), there.operator(hessian)(v))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_leaves_the_others_alone(bad: float, maps: str) -> None:
    objective = objective_of("padding, overlap, ceil")
    theta, v = rows(objective, 3), rows(objective, 3, seed=2)
    theta[1, 3] = bad
    here, alone = objective.evaluate(theta), objective.evaluate(theta[2:])
    assert not torch.isfinite(here.loss[1])
    torch.testing.assert_close(here.loss[2:], alone.loss)
    torch.testing.assert_close(here.gradient[2:], alone.gradient)
    torch.testing.assert_close(here.operator(hessian)(v)[2:], alone.operator(hessian)(v[2:]))


def test_an_output_that_is_not_a_number_stays_one() -> None:
    objective = objective_of("lenet")
    objective.inputs[1, 0, 4, 4] = float("nan")
    found = objective.outputs(rows(objective, 1))[0].isnan().any(dim=1)
    assert found.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("parameters", "parameters: must be torch.float64 on cpu, got torch.float32 on cpu"),
        ("vectors", "vectors: must be torch.float64 on cpu, got torch.float32 on cpu"),
        ("device", "vectors: must be torch.float64 on cpu, got torch.float64 on meta"),
        ("cotangent", "cotangent: must be torch.float64 on cpu, got torch.float32 on cpu"),
        ("trials", "vectors: must have the shape (2, 121), got (1, 121)"),
    ],
)
def test_tensors_of_another_kind_are_refused_before_compiled_code_reads_them(change: str, line: str) -> None:
    objective = objective_of("lenet")
    theta = rows(objective, 2)
    here = objective.evaluate(theta)
    attempts: dict[str, Callable[[], object]] = {
        "parameters": lambda: objective.evaluate(theta.float()),
        "vectors": lambda: here.hvp(theta.float()),
        "device": lambda: here.jvp(theta.to("meta")),
        "cotangent": lambda: here.vjp(here.output_gradient().float()),
        "trials": lambda: here.hvp(theta[:1]),
    }
    with pytest.raises(ValueError) as caught:
        attempts[change]()
    assert str(caught.value) == line


def test_a_cotangent_may_share_memory_between_trials(maps: str) -> None:
    model = nn.Sequential(Conv(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double()
    x = torch.randn(4, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = ModelObjective(model, x, torch.arange(4))
    assert objective.chain is not None
    here = objective.evaluate(rows(objective, 2))
    shared = torch.randn(1, 4, 6, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(here.vjp(shared), here.vjp(shared.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_share_the_work_without_a_change(dtype: torch.dtype) -> None:
    make, shape = CHAINS["padding, overlap, ceil"]
    x = torch.randn(9, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    objective = ModelObjective(make().to(dtype), x, torch.arange(9) % 3)
    theta, v = rows(objective, 2).to(dtype), rows(objective, 2, seed=2).to(dtype)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            here = objective.evaluate(theta)
            found.append([here.loss, here.gradient, here.operator(hessian)(v)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x + torch.relu(self.one(x)))  # type: ignore[no-any-return]


class ScaledWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight)


class Caught(nn.Module):
    """A module that goes on after any exception of its first attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = torch.cos(x)
        except Exception:  # noqa: BLE001
            x = x.contiguous()
        return self.out(x)  # type: ignore[no-any-return]


class Unused(nn.Module):
    """A chain with a parameter that takes no part, and one layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.layer, self.out = nn.Linear(2, 2), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.layer(x))
        return self.out(F.tanh(self.layer(x)).view(len(x), -1))  # type: ignore[no-any-return]


VECTOR, IMAGE = (4,), (1, 8, 8)
OTHERS: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    "a residual": (Residual(), VECTOR, False),
    "a scaled weight": (ScaledWeight(), VECTOR, False),
    "an exception that is caught": (Caught(), VECTOR, False),
    "a layer used twice, and one unused": (Unused(), VECTOR, True),
    "a ReLU in place": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), VECTOR, True),
    "dropout that evaluates": (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).eval(), VECTOR, True),
    "dropout that trains": (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), VECTOR, False),
    "a layer norm": (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), VECTOR, False),
    "a stride": (nn.Sequential(Conv(1, 2, 3, 2), nn.MaxPool2d(2), *head(2)), IMAGE, False),
    "padding by name": (
        nn.Sequential(Conv(1, 2, 3, padding="same"), nn.MaxPool2d(2), *head(32)),
        IMAGE,
        False,
    ),
    "groups": (nn.Sequential(Conv(2, 2, 3, groups=2), nn.MaxPool2d(2), *head(18)), (2, 8, 8), False),
    "no pooling": (nn.Sequential(Conv(1, 2, 5), nn.ReLU(), *head(32)), IMAGE, False),
    "tanh after pooling": (nn.Sequential(Conv(1, 2, 5), nn.MaxPool2d(2), nn.Tanh(), *head(8)), IMAGE, False),
    "pooling alone": (nn.Sequential(nn.MaxPool2d(2), *head(16)), IMAGE, False),
    "no parameters in the chain": (nn.Flatten(), VECTOR, False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_is_served_by_what_it_does(name: str) -> None:
    model, shape, served = OTHERS[name]
    x = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = model.double()
    objective = ModelObjective(model, x, torch.arange(5) % 3)
    assert (objective.chain is not None) is served
    if served:
        graph = ModelObjective(model, x, objective.targets, chain=None)
        theta, v = rows(objective, 2), rows(objective, 2, seed=2)
        here, there = objective.evaluate(theta), graph.evaluate(theta)
        torch.testing.assert_close(here.operator(hessian)(v), there.operator(hessian)(v))
        torch.testing.assert_close(here.gradient, there.gradient)
        torch.testing.assert_close(here.output_gradient(), there.output_gradient())
        torch.testing.assert_close(here.squared_gradients(), there.squared_gradients())


def test_autocast_and_half_precision_keep_to_graphs() -> None:
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Chain.of(model, x) is None
    assert Chain.of(model.half(), x.half()) is None
    assert record(nn.Linear(4, 3), x) is not None


def test_recording_neither_computes_nor_changes_the_model() -> None:
    model = nn.Sequential(Conv(1, 2, 5), nn.ReLU(), nn.MaxPool2d(2), *head(8)).to("meta")
    assert Chain.of(model, torch.empty(10**6, 1, 8, 8, device="meta")) is not None
    assert all(p.grad is None and p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (ModuleNotFoundError("No module named x"), "not built, or built without a C compiler"),
        (ImportError("undefined symbol: PyX\nmore"), "undefined symbol: PyX"),
        (OSError("invalid ELF header"), "invalid ELF header"),
    ],
)
def test_compiled_maps_that_cannot_be_loaded_are_named(
    broken: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ahf_cli.optim.layers._selected"

    class Finder:
        def find_spec(self, wanted: str, *_: object) -> None:
            if wanted == name:
                raise broken

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    found, why = compiled._load()
    assert found is None and why.endswith(reason)


@pytest.mark.long
def test_training_without_compiled_maps_agrees_and_says_so(tmp_path: Path) -> None:
    code = (
        "import torch; from ahf_cli.optim.layers.compiled import described, numerics;"
        "from ahf_cli.optim import ModelObjective, hessian;"
        "from ahf_cli.tasks.initial import glorot_uniform; from ahf_cli.tasks.models import LeNet;"
        "x = torch.linspace(0, 1, 4 * 784, dtype=torch.float64).sin().view(4, 1, 28, 28);"
        "h = ModelObjective(LeNet().double(), x, torch.arange(4));"
        "t = glorot_uniform(h.layout, 0).double()[None]; e = h.evaluate(t);"
        "print(h.chain is None, numerics('cpu'), float(e.operator(hessian)(e.gradient).norm()), described())"
    )
    said = []
    for switch in ("no", ""):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "AHF_COMPILED": switch, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        said.append(run.stdout.split(maxsplit=3))
    (graph, path, norm, words), (explicit, other, same, _) = said
    assert (graph, path, explicit, other) == ("True", "pytorch", "False", "compiled")
    assert float(norm) == pytest.approx(float(same), rel=1e-12)
    assert words.strip() == "convolutions by PyTorch; no compiled layers (AHF_COMPILED=no)"
    importlib.reload(compiled)
