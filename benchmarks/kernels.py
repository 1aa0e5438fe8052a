"""Operations that a GPU would be asked for, counted on the meta device, which computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ahf_cli.optim.layers.selected as selected
from ahf_cli.optim import MartensRules, conjugate_gradient
from benchmarks import problems
from benchmarks.timing import Bench

NO_KERNEL = ("aten.detach", "aten.empty", "aten.new_empty")
READ = "aten._local_scalar_dense"
KERNELS = ("_forward", "_to_input", "_to_weight")
TRIALS = (1, 10, 70)


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations other than views and allocations, and launches of our own kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(READ):  # a loop that asks whether to go on hears yes
            return args[0].dtype == torch.bool or 1
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        self.operations += not view and not str(func).startswith(NO_KERNEL)
        return func(*args, **(kwargs or {}))

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Stand for a kernel of ours: count its launch."""

        def launch(*_: Any, **__: Any) -> None:
            self.operations += 1

        return launch


@contextmanager
def path(numerics: str, count: Count) -> Iterator[None]:
    """Let the meta device take a GPU's numerical path."""
    import ahf_cli.optim.layers.triton_maps as maps

    with ExitStack() as stack:
        stack.enter_context(patch.object(selected, "numerics", lambda device: numerics))
        for kernel in KERNELS:
            stack.enter_context(patch.object(maps, kernel, count))
        yield


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Count the operations of gradients, products and CG iterations of LeNet and a batch of 128."""
    if torch.get_num_threads() > 1:
        return []  # the counts are the same
    rows = []
    for name, explicit, numerics in (
        ("automatic differentiation", False, "cuda"),
        ("explicit layers, dense maps", True, "cuda"),
        ("explicit layers, Triton maps", True, "triton"),
    ):
        for trials in TRIALS[:2] if bench.quick else TRIALS:
            counts = _operations(explicit, numerics, trials)
            rows.append({"path": name, "trials": trials, "operations": counts})
    return rows


def _operations(explicit: bool, numerics: str, trials: int) -> dict[str, int]:
    h = problems.objective(torch.device("meta"), explicit=explicit)
    theta = torch.empty(trials, h.layout.size, device="meta")
    count = Count()

    def of(action: Callable[[], Any]) -> int:
        before = count.operations
        with count:
            action()
        return count.operations - before

    with path(numerics, count):
        found = {"gradient": of(lambda: h.evaluate(theta).gradient)}
        for name, curvature in problems.CURVATURES.items():
            operator = h.evaluate(theta).operator(curvature)
            operator(theta)
            found[name] = of(lambda operator=operator: operator(theta))  # type: ignore[misc]
            if name == "hessian":
                one, two = (of(lambda n=n, b=operator: _cg(b, theta, n)) for n in (11, 12))  # type: ignore[misc]
                found["cg_iteration"] = two - one
    return found


def _cg(operator: Callable[[torch.Tensor], torch.Tensor], vectors: torch.Tensor, iterations: int) -> None:
    damping = torch.empty(len(vectors), device="meta")
    conjugate_gradient(operator, damping, vectors, vectors, MartensRules(), iterations, check_every=5)
