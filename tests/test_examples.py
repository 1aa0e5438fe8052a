"""Examples with other frameworks, and the page on own models and loops: programs, messages, claims."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim import HessianFree
from ahf_cli.optim.cg import Stop

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own_model.md"
LOSSES = {
    "lightning_module": {"automatic": 0.05, "manual": 0.05},
    "skorch_classifier": {"epoch": 0.05},
    "transformers_bert": {"sdpa": 0.05, "eager": 0.05},
    "deepxde_poisson": {"step": 1e-2},
}
"""Example → the first word of a line → the loss that the last such line must fall below."""


@pytest.mark.long
@pytest.mark.parametrize("name", LOSSES)
def test_an_example_with_another_framework_reaches_its_loss(name: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if absent := re.search(r"^ModuleNotFoundError: .*", done.stderr, re.M):
        pytest.fail(f"{absent[0]}: run pip install -e '.[examples]'", pytrace=False)
    assert done.returncode == 0, done.stderr
    for word, limit in LOSSES[name].items():
        losses = [float(v) for v in re.findall(rf"^{word}\b.*loss (\S+)$", done.stdout, re.M)]
        assert len(losses) >= 2 and losses[-1] < limit and losses[-1] < 0.1 * losses[0], done.stdout


def test_every_example_is_short_and_in_the_table() -> None:
    for name in LOSSES:
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 60
        assert f"(../examples/{name}.py)" in PAGE.read_text()


def test_every_block_of_the_page_runs_and_descends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 5 and len(PAGE.read_text().splitlines()) <= 140
    for block in blocks:
        exec(compile(block, "docs/own_model.md", "exec"), names)
    assert names["losses"][-1] < 0.2 * names["losses"][0]
    assert names["errors"][-1] < 1e-3 * names["errors"][0]
    assert re.search(r"^h \S+ → \S+ by α 0\.99, diverged False$", capsys.readouterr().out, re.M)


def loop() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(64, 2)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), x, x.prod(dim=1, keepdim=True)


MODEL, X, Y = loop()
TABLE = nn.Embedding(4, 2, sparse=True)
OLD = MODEL(X)
NOISE = np.random.default_rng(0)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def freed() -> Tensor:
    loss = loss_of(MODEL, X, Y)
    torch.autograd.backward(loss)
    return loss


def clipped() -> Tensor:
    loss = loss_of(MODEL, X, Y)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(MODEL.parameters(), 1e-3)
    return loss


def accumulated() -> Tensor:
    loss = loss_of(ADDED, X, Y)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


ADDED, *_ = loop()
accumulated()


REFUSED: dict[str, tuple[nn.Module, Callable[[], Any] | None]] = {
    "needs a closure that returns the loss": (MODEL, None),
    "got float for the loss": (MODEL, lambda: loss_of(MODEL, X, Y).item()),
    "got a loss of shape (64, 1)": (MODEL, lambda: F.mse_loss(MODEL(X), Y, reduction="none")),
    "the loss depends on no optimized parameter": (MODEL, lambda: loss_of(MODEL, X, Y).detach()),
    "all calls of a step need the same batch and noise": (
        MODEL, lambda: F.mse_loss(MODEL(X), Y * float(NOISE.normal())),
    ),
    "compute the model within the closure": (MODEL, lambda: F.mse_loss(OLD, Y)),
    "the loss was not computed from the outputs": (MODEL, lambda: (loss_of(MODEL, X, Y), MODEL(X))),
    "the closure freed the graph": (MODEL, freed),
    "the closure changes p.grad": (MODEL, clipped),
    "accumulate by a list of closures": (ADDED, accumulated),
    "make the embedding with sparse=False": (TABLE, lambda: TABLE(torch.tensor([1, 2])).square().sum()),
}  # fmt: skip
"""Message of the page → a module, and a closure that is refused with it."""


def test_every_message_of_the_page_has_a_program() -> None:
    table = PAGE.read_text().split("| the closure | message |")[1].split("\n\n")[0]
    assert re.findall(r"\| `([^`]*)` \|$", table, re.M) == list(REFUSED)


@pytest.mark.parametrize("message", REFUSED)
def test_a_closure_of_the_page_is_refused_with_its_message(message: str) -> None:
    module, closure = REFUSED[message]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=re.escape(message)):
        HessianFree(module.parameters()).step(closure)


def test_small_batches_raise_the_loss_between_steps_and_never_within() -> None:
    model, x, y = loop()
    optimizer, rises = HessianFree(model.parameters()), 0
    previous = float("inf")
    for inputs, targets in zip(torch.split(x, 4), torch.split(y, 4), strict=True):
        loss = float(optimizer.step(partial(loss_of, model, inputs, targets)))
        assert optimizer.last_step is not None and float(optimizer.last_step.loss_after) <= loss
        rises += loss > 2 * previous
        previous = float(optimizer.last_step.loss_after)
    assert rises >= 2


def test_the_record_tells_a_refusal_from_convergence() -> None:
    p = nn.Parameter(torch.ones(3))
    refused = HessianFree([p])
    # By its graph the loss falls with |p|, but its value p² rises.
    refused.step(lambda: (2 * (p.detach() ** 2) - p**2).sum())
    assert refused.last_step is not None and float(refused.last_step.step_size) == 0 and p.tolist() == [1] * 3
    assert refused.damping == 1.5
    model, x, y = nn.Linear(2, 1), *loop()[1:]
    converged = HessianFree(model.parameters())
    for _ in range(30):
        converged.step(partial(loss_of, model, x, y))
    record = converged.last_step
    assert record is not None and torch.isnan(record.reduction_ratio) and float(record.step_size) > 0
    assert Stop(int(record.stop)).name in ("RESIDUAL", "PROGRESS")
