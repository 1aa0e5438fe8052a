"""A batch over several processes gives the steps of one process with the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from ahf_cli.errors import AhfError
from ahf_cli.optim import AdaptiveHessianFree, HessianFree, ModelObjective, compose
from ahf_cli.optim.distributed import DistributedObjective
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.study.store import Study
from ahf_cli.training.ranks import joined
from tests.problems import problem, rows

CASES: dict[str, Recipe] = {
    **{name: RECIPES[name] for name in ("hf", "adaptive_hf", "hf_martens", "natural_gradient", "adam")},
    "adahessian": RECIPES["adahessian"],
    "hf_ggn": RECIPES["hf"].derive("hf_ggn", {"curvature": "ggn", "reduction_ratio": "update"}),
}
STEPS, EXAMPLES = 4, 24


def trained(recipe: Recipe, rank: int = 0, world: int = 1) -> torch.Tensor:
    """Return the parameters after a few steps on one rank's part of each batch."""

    def part(seed: int) -> ModelObjective | DistributedObjective:
        whole = problem("mlp", examples=EXAMPLES, seed=seed)
        own = ModelObjective(whole.model, whole.inputs[rank::world], whole.targets[rank::world])
        return own if world == 1 else DistributedObjective(own)

    core = compose(recipe.structure)
    state = core.init(rows(problem("mlp"), 2), recipe.complete({"lr": 0.05} if "lr" in recipe.free else {}))
    for step in range(STEPS):
        seeds = (step, 100 + step) if core.independent_batch else (step,)
        state, _ = core.step(state, *(part(seed) for seed in seeds))
    return state.parameters


@contextmanager
def group(rank: int, world: int, port: int) -> Iterator[None]:
    """Join the other ranks as the processes of `torchrun` do."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.world) == (rank, world)
        yield


def threads() -> set[str]:
    return {name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")}


def work(rank: int, world: int, port: int, folder: str) -> None:
    with group(rank, world, port):
        found = {name: trained(recipe, rank, world) for name, recipe in CASES.items()}
        torch.save(found, f"{folder}/{rank}.pt")
        assert "pt_gloo_runloop" in threads()
    # One that is still running when the interpreter ends aborts the process now and then.
    assert not any("gloo" in name for name in threads()), threads()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_ranks_with_equal_parts_are_one_process_with_the_joined_batch(world: int, tmp_path: Path) -> None:
    spawn(work, (world, free_port(), str(tmp_path)), nprocs=world)  # type: ignore[no-untyped-call]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    moved = set[str]()
    for name, recipe in CASES.items():
        alone = trained(recipe)
        for own in found:
            torch.testing.assert_close(own[name], alone, rtol=1e-10, atol=1e-10)
            assert torch.equal(own[name], found[0][name]), "ranks must not drift apart"
        if (alone - rows(problem("mlp"), 2)).abs().max() > 1e-3:
            moved.add(name)
    assert moved == CASES.keys() - {"adaptive_hf"}, "the steps of Eq. 3 are shorter"


def leave(rank: int, world: int, port: int, folder: str) -> None:
    with group(rank, world, port):
        objective = DistributedObjective(problem("mlp"))
        theta = rows(problem("mlp"), 1)
        objective.value(theta)
        if rank == 1:
            os._exit(0)
        try:
            objective.value(theta)
        except AhfError as error:
            (Path(folder) / "said").write_text("\n".join(error.lines))


def test_a_rank_that_is_gone_is_named_in_one_line(tmp_path: Path) -> None:
    spawn(leave, (2, free_port(), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    said = (tmp_path / "said").read_text()
    assert said.startswith("rank 0 of 2 has lost another rank (") and "from the last checkpoint" in said
    assert len(said.splitlines()) == 1


TINY = [
    "train", "hf", "--preset", "smoke", "-p", "lr=0.05", "-o", "task.subset=400", "-o", "task.batch_size=64",
    "-o", "train.steps=4", "-o", "train.eval_every=2", "-q", "--json", "--study",
]  # fmt: skip


def ahf(*words: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return subprocess.run(
        [sys.executable, "-m", *(several if ranks > 1 else []), "ahf_cli", *words],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.long
def test_torchrun_trains_as_one_process_does_and_resumes(tmp_path: Path) -> None:
    results = ("--results", str(tmp_path))
    alone, together = ahf(*TINY, "a", *results), ahf(*TINY, "b", *results, ranks=2)
    assert (alone.returncode, together.returncode) == (0, 0), together.stderr
    one, two = (json.loads(done.stdout)["final"] for done in (alone, together))
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)
    assert one["test_accuracy"] == pytest.approx(two["test_accuracy"], abs=0.01)
    assert Study(tmp_path, "b").manifest()["ranks"] == 2
    again = ahf(*TINY, "b", *results, ranks=2)
    assert again.returncode == 0 and json.loads(again.stdout)["final"] == two
    odd = ahf(*TINY, "c", *results, "-o", "task.batch_size=63", ranks=2)
    assert odd.returncode != 0
    assert "task.batch_size: must be a multiple of the number of ranks (2), got 63" in odd.stderr


def class_trained(form: str, rank: int, world: int) -> torch.Tensor:
    """Train the classes of `ahf_cli.optim` on a rank's part of a batch, in a form of data parallelism."""
    torch.manual_seed(0)
    x = torch.randn(32, 6, dtype=torch.float64)
    y = (x @ torch.randn(6, 3, dtype=torch.float64)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    module: nn.Module = model
    if form == "module" and world > 1:
        module = nn.parallel.DistributedDataParallel(model)
    group = {"group": True, "alone": False}.get(form) if world > 1 else None
    own = slice(rank, None, world)
    optimizers = [
        HessianFree(model.parameters(), process_group=group),
        AdaptiveHessianFree(model.parameters(), process_group=group),
    ]

    def closure() -> tuple[torch.Tensor, torch.Tensor]:
        z = module(x[own])
        return nn.functional.cross_entropy(z, y[own]), z

    for step in range(6):
        optimizers[step % 2].step(closure)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def class_rank(rank: int, world: int, port: int, folder: Path) -> None:
    with group(rank, world, port):
        for form in ("module", "group", "alone"):
            torch.save(class_trained(form, rank, world), folder / f"{form} {rank}.pt")
        with pytest.raises(
            ValueError, match="process_group: this is one of 2 ranks, and the closure runs no"
        ):
            class_trained("nothing", rank, world)


@pytest.mark.long
def test_the_classes_average_over_ranks_or_ask(tmp_path: Path) -> None:
    spawn(class_rank, (2, free_port(), tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    whole = class_trained("one process", 0, 1)
    for form in ("module", "group"):
        for rank in range(2):
            found = torch.load(tmp_path / f"{form} {rank}.pt")
            torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
    alone = [torch.load(tmp_path / f"alone {rank}.pt") for rank in range(2)]
    assert not torch.allclose(alone[0], alone[1])
