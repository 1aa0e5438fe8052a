"""skorch: a scikit-learn classifier whose `optimizer` is HessianFree; skorch calls it with its own closure.

    pip install -e '.[examples]' && python examples/skorch_classifier.py

skorch's own lr is 0.01.  Give `lr=1`: the line search begins at the whole Newton step.
"""

from __future__ import annotations

import torch
from skorch import NeuralNetClassifier
from torch import nn

from ahf_cli import HessianFree

if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = (x @ torch.randn(6, 3)).argmax(dim=1)
    classifier = NeuralNetClassifier(
        nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)),
        criterion=nn.CrossEntropyLoss,
        optimizer=HessianFree,
        optimizer__max_iterations=20,
        lr=1.0,
        batch_size=-1,  # one batch with all examples
        max_epochs=15,
        train_split=None,
        verbose=0,
    )
    classifier.fit(x.numpy(), y.numpy())
    for epoch in classifier.history[::2]:
        print(f"epoch {epoch['epoch']:2d}: loss {epoch['train_loss']:.4f}")
    print(f"accuracy {classifier.score(x.numpy(), y.numpy()):.3f}")
