"""Float32 products with all their digits on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off, and back to its setting before.

    Products with mantissas of 10 bits would make B unsymmetric, and change the iteration at which CG stops.
    """
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, setting in zip(places, before, strict=True):
            place.fp32_precision = setting


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function in full precision."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with full_precision():
            return function(*args, **kwargs)

    return run
