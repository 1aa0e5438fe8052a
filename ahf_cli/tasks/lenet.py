"""LeNet for 28 × 28 images, and the initial weights of a seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim.rows import Layout


class LeNet(nn.Module):
    """Two convolutions and three linear layers, 44,426 parameters; (N, 1, 28, 28) → logits (N, 10).

    conv 6@5×5 – ReLU – max-pool 2 – conv 16@5×5 – ReLU – max-pool 2 – 120 – ReLU – 84 – ReLU – 10,
    convolutions without padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(256, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        # ReLU after pooling gives the same values and derivatives as before it, on a quarter of the numbers.
        pooled = torch.max_pool2d(self.conv1(x), 2) if torch.is_grad_enabled() else _pooled(x, self.conv1)
        x = torch.relu(pooled)
        x = torch.relu(torch.max_pool2d(self.conv2(x), 2))
        x = torch.relu(self.fc1(x.flatten(start_dim=1)))
        return self.fc3(torch.relu(self.fc2(x)))  # type: ignore[no-any-return]


def _pooled(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return `max_pool2d(layer(x), 2)`, for passes without a graph: of few channels, twice as fast on a CPU.

    The four results that compete in a window are one result of four times as many channels, of the kernel in
    the four corners of one that is larger by 1, at every second position.
    """
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    count = len(weight)
    corners = [F.pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    # Channels last, which the second convolution takes over: there a maximum of views is the cheapest one.
    kernel = torch.cat(corners).contiguous(memory_format=torch.channels_last)
    rivals = torch.conv2d(x, kernel, bias.repeat(4), stride=2)
    left, right = rivals[:, : 2 * count], rivals[:, 2 * count :]
    both = torch.maximum(left, right)
    return torch.maximum(both[:, :count], both[:, count:])


def glorot_uniform(layout: Layout, seed: int) -> Tensor:
    """Draw weights uniform in ±√(6/(fan_in + fan_out)) (Glorot and Bengio 2010), biases 0; → (P,) float32.

    A pure function of layout and seed, equal on every device: the random numbers are NumPy's.
    """
    rng = np.random.default_rng([seed, 0])
    pieces = []
    for shape in layout.shapes:
        if len(shape) < 2:
            pieces.append(np.zeros(shape.numel()))
            continue
        receptive = int(np.prod(shape[2:]))
        bound = np.sqrt(6 / ((shape[0] + shape[1]) * receptive))
        pieces.append(rng.uniform(-bound, bound, shape.numel()))
    return torch.from_numpy(np.concatenate(pieces)).float()
