"""Lightning: one module trains by automatic optimization, written as for Adam, and by manual optimization.

    pip install -e '.[examples]' && python examples/lightning_module.py

The closure of automatic optimization returns the loss alone: B is the Hessian.  The closure of manual
optimization may return the outputs as well: B is the Gauss-Newton matrix.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ahf_cli import HessianFree


class Classifier(lightning.LightningModule):
    """A small network that learns the class of points in six dimensions."""

    def __init__(self, manual: bool):
        super().__init__()
        self.automatic_optimization = not manual
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    def configure_optimizers(self) -> Any:
        """Return the optimizer; Lightning gives it the closures."""
        return HessianFree(self.parameters())

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor | None:
        """Return the loss, or take a step."""
        x, y = batch

        def closure() -> tuple[Tensor, Tensor]:
            outputs = self.net(x)
            return F.cross_entropy(outputs, y), outputs

        if self.automatic_optimization:
            return closure()[0]
        optimizer: Any = self.optimizers()
        optimizer.step(closure)
        return None


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    y = (x @ torch.randn(6, 3)).argmax(dim=1)
    data = DataLoader(TensorDataset(x, y), batch_size=512)  # large batches: B of a small one misleads
    off: Any = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    for name in ("automatic", "manual"):
        model = Classifier(name == "manual")
        print(f"{name}, before: loss {F.cross_entropy(model.net(x), y):.4f}")
        lightning.Trainer(max_epochs=15, accelerator="cpu", logger=False, **off).fit(model, data)
        print(f"{name}, after: loss {F.cross_entropy(model.net(x), y):.4f}")
