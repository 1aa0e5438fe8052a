"""The source of an installed package with optimizer classes, good and bad ones."""

PACKAGE = '''
import random
import numpy, torch
from torch.optim import Optimizer

class Plain(Optimizer):
    """θ ← θ − lr g."""
    def __init__(self, params, lr=0.1, **others):
        super().__init__(params, {"lr": lr, **others})

    def move(self, p, group):
        p.add_(p.grad, alpha=-group["lr"])

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.move(p, group)

class Noisy(Plain):
    """Draws from PyTorch and from Python."""
    def move(self, p, group):
        p.add_(p.grad + torch.randn_like(p) + random.random(), alpha=-group["lr"])

class NumPyNoise(Plain):
    def move(self, p, group):
        p.add_(p.grad, alpha=-group["lr"] * numpy.random.rand())

class Reassigning(Plain):
    def move(self, p, group):
        p.data = p.data - group["lr"] * p.grad

class Halving(Plain):
    """Changes the gradient in place, and fails at a NaN."""
    def move(self, p, group):
        assert p.grad.isfinite().all()
        p.grad.mul_(0.5)
        super().move(p, group)

class Singular(Plain):
    def move(self, p, group):
        torch.linalg.cholesky(-torch.eye(2))

class NoRate(Optimizer):
    """θ ← θ − rate g."""
    def __init__(self, params, rate: float = 0.1, scale=2, limit: "float | None" = None, far=float("inf")):
        self.limit = limit
        super().__init__(params, {"rate": rate * scale})

    step = Plain.step

    def move(self, p, group):
        p.add_(p.grad, alpha=-group["rate"])

class Needy(Plain):
    def __init__(self, params, lr, rho: float, depth: int):
        super().__init__(params, lr)

class Modes(Plain):
    """SGD whose θ in training is half way back to the step before (schedule-free without weights)."""
    mode = "eval"
    def train(self):
        self.swap("train", 1)

    def eval(self):
        self.swap("eval", -1)

    @torch.no_grad()
    def swap(self, mode, sign):
        assert mode != self.mode
        self.mode = mode
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("shift", torch.zeros_like(p))
            p.add_(self.state[p]["shift"], alpha=sign)

    def move(self, p, group):
        assert self.mode == "train"
        self.state[p]["shift"] = 0.5 * group["lr"] * p.grad
        p.add_(p.grad, alpha=-group["lr"])

class Seldom(Plain):
    """Moves in every tenth step from its start, which is not saved."""
    count = 0
    def step(self, closure=None):
        self.count += 1
        if self.count % 10 == 0:
            super().step()

class NoStep(Optimizer):
    pass
'''
