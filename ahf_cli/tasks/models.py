"""The built-in models for images of any number of channels and classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ahf_cli.tasks.jets import Sine

Shape = tuple[int, int, int]
"""channels, height, width of an image"""


class LeNet(nn.Module):
    """Two convolutions and three linear layers; (N, C, H, W) → logits (N, classes).

    For 28 × 28 images of one channel and ten classes it has 44,426 parameters:

    conv 6@5×5 – ReLU – max-pool 2 – conv 16@5×5 – ReLU – max-pool 2 – 120 – ReLU – 84 – ReLU – 10,
    convolutions without padding.
    """

    def __init__(self, shape: Shape = (1, 28, 28), classes: int = 10) -> None:
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
        x = torch.relu(torch.max_pool2d(self.conv1(x), 2))
        x = torch.relu(torch.max_pool2d(self.conv2(x), 2))
        x = torch.relu(self.fc1(x.flatten(start_dim=1)))
        return self.fc3(torch.relu(self.fc2(x)))  # type: ignore[no-any-return]


def lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet; for 28 × 28 images with one channel and ten classes it is the paper's network."""
    return LeNet(shape, classes)


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A multilayer perceptron with two hidden layers of 256 and 128 and ReLU, for inputs of any shape."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
        nn.Linear(128, classes),
    )  # fmt: skip


def net3c3d(shape: Shape, classes: int) -> nn.Module:
    """Three convolutions and three dense layers, the 3c3d of DeepOBS (Schneider et al. 2019)."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(),
    )  # fmt: skip
    head = (nn.Linear(_width(body, shape), 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
    return nn.Sequential(*body, *head, nn.Linear(256, classes))


def alexnet_small(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions with overlapping pooling, three dense layers, no normalisation (Zhang et al. 2017)."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
    )  # fmt: skip
    head = (nn.Linear(_width(body, shape), 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU())
    return nn.Sequential(*body, *head, nn.Linear(192, classes))


def resnet34(shape: Shape, classes: int) -> nn.Module:
    """ResNet-34 (He et al. 2016) with a first convolution of 3 × 3 and no first pooling, for small images.

    Batch normalisation uses its running statistics, which stay at mean 0 and variance 1.  The loss of an
    example then depends on that example alone, as curvature products over batches need.
    """
    from torchvision.models import resnet34 as make

    model: nn.Module = make(num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.eval()


def _smooth(unit: type[nn.Module], *widths: int) -> Callable[[tuple[int, ...], int], nn.Module]:
    """Return the maker of dense layers of these widths with smooth units, for points of an equation."""

    def make(shape: tuple[int, ...], outputs: int) -> nn.Module:
        sides = (math.prod(shape), *widths)
        hidden = [part for a, b in pairwise(sides) for part in (nn.Linear(a, b), unit())]
        return nn.Sequential(*hidden, nn.Linear(sides[-1], outputs))

    make.__doc__ = f"{unit.__name__} units in dense layers of {', '.join(map(str, widths))}."
    return make


tanh_64 = _smooth(nn.Tanh, 64)
tanh_64_64_48_48 = _smooth(nn.Tanh, 64, 64, 48, 48)
tanh_256_256_128_128 = _smooth(nn.Tanh, 256, 256, 128, 128)
sine_64 = _smooth(Sine, 64)
softplus_64 = _smooth(nn.Softplus, 64)


@torch.no_grad()
def _width(body: nn.Module, shape: Shape) -> int:
    """Return the length of a model part's output for one image."""
    outputs: Tensor = body(torch.zeros(1, *shape))
    return outputs.shape[1]
