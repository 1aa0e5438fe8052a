"""The built-in models, for images of any number of channels and classes; `catalogue` has their names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ahf_cli.tasks.lenet import LeNet

Shape = tuple[int, int, int]
"""channels, height, width of an image"""


def lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet; for 28 × 28 images with one channel and ten classes it is the one of the paper."""
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

    Batch normalisation uses its running statistics, which stay at mean 0 and variance 1: an example's loss is
    then a function of that example alone, as curvature products over batches need it.
    """
    from torchvision.models import resnet34 as make

    model: nn.Module = make(num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.eval()


@torch.no_grad()
def _width(body: nn.Module, shape: Shape) -> int:
    """Return how many numbers an image is to a part of a model."""
    outputs: Tensor = body(torch.zeros(1, *shape))
    return outputs.shape[1]
