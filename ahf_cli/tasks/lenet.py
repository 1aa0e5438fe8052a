"""LeNet for 28 × 28 images, and the initial weights of a seed."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim.rows import Layout


class LeNet(nn.Module):
    """Two convolutions and three linear layers; (N, C, H, W) → logits (N, classes).

    For 28 × 28 images of one channel and ten classes it has 44,426 parameters.

    conv 6@5×5 – ReLU – max-pool 2 – conv 16@5×5 – ReLU – max-pool 2 – 120 – ReLU – 84 – ReLU – 10,
    convolutions without padding.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
        self.conv1 = nn.Conv2d(shape[0], 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

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


def glorot_uniform(layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
    """Draw weights uniform in ±√(6/(fan_in + fan_out)) (Glorot and Bengio 2010), biases 0; → (P,) float32.

    Vectors named in `ones`, the scales of normalisation layers, are 1.  A pure function of its arguments,
    equal on every device: the random numbers are NumPy's.
    """
    rng = np.random.default_rng([seed, 0])
    pieces = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) < 2:
            pieces.append(np.full(shape.numel(), float(name in ones)))
            continue
        receptive = int(np.prod(shape[2:]))
        bound = np.sqrt(6 / ((shape[0] + shape[1]) * receptive))
        pieces.append(rng.uniform(-bound, bound, shape.numel()))
    return torch.from_numpy(np.concatenate(pieces)).float()
