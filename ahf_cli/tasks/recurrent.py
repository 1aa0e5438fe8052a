"""Problems of memory over many steps (Hochreiter and Schmidhuber 1997), and a recurrent network for them.

The problems are those of Martens and Sutskever (2011).  Two things are simpler here: all sequences of a data
set have one length T, and a network answers once, after its last input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahf_cli.optim.rows import Layout
from ahf_cli.tasks.datasets import find
from ahf_cli.tasks.initial import INCOMING, sparse

if TYPE_CHECKING:
    from ahf_cli.tasks.datasets import Array, Arrays

Examples = tuple["Array", "Array"]
"""inputs (N, T, channels) and targets (N, …)"""
Integers = NDArray[np.int64]
SEQUENCES_SEED = 2011
TEST = 5_000
SYMBOLS, DISTRACTORS = 100, 4
BITS = 5


def sequences(problem: str, steps: int) -> Arrays:
    """Return the training and test examples of a problem at T = `steps`; a fixed seed draws them."""
    training = find(f"{problem}_{steps}").training
    rng = np.random.default_rng([SEQUENCES_SEED, steps])
    x, y = PROBLEMS[problem](rng, training + (len(_all_bits()) if problem == "memorization" else TEST), steps)
    return x[:training], y[:training], x[training:], y[training:]


def _marked(rng: np.random.Generator, values: NDArray[np.float32]) -> tuple[Array, Array]:
    """Return values (N, T) beside their marks, (N, T, 2), and the two marked values, (N, 2).

    The first mark is in the first tenth of the steps, the second after it in the first half.
    """
    count, steps = values.shape
    rows = np.arange(count)[:, None]
    places = rng.integers([0, steps // 10], [steps // 10, steps // 2], (count, 2))
    marks = np.zeros_like(values)
    marks[rows, places] = 1
    return np.stack([values, marks], axis=-1), values[rows, places]


def addition(rng: np.random.Generator, count: int, steps: int) -> Examples:
    """Numbers uniform in [0, 1], two of them marked; the target is their sum."""
    x, marked = _marked(rng, rng.random((count, steps), np.float32))
    return x, marked.sum(axis=1, keepdims=True)


def multiplication(rng: np.random.Generator, count: int, steps: int) -> Examples:
    """Numbers uniform in [0, 1], two of them marked; the target is their product."""
    x, marked = _marked(rng, rng.random((count, steps), np.float32))
    return x, marked.prod(axis=1, keepdims=True)


def xor(rng: np.random.Generator, count: int, steps: int) -> Examples:
    """Random bits, two of them marked; the target is 1 if they differ, else 0."""
    x, marked = _marked(rng, rng.integers(0, 2, (count, steps)).astype(np.float32))
    return x, np.abs(marked[:, :1] - marked[:, 1:])


def _order(*tenths: int) -> Callable[[np.random.Generator, int, int], Examples]:
    def examples(rng: np.random.Generator, count: int, steps: int) -> Examples:
        symbols = rng.integers(0, DISTRACTORS, (count, steps))
        bits = rng.integers(0, 2, (count, len(tenths)))
        for n, tenth in enumerate(tenths):
            place = rng.integers(tenth * steps // 10, (tenth + 1) * steps // 10, count)
            symbols[np.arange(count), place] = DISTRACTORS + bits[:, n]
        return _one_hot(symbols, DISTRACTORS + 2), bits @ (1 << np.arange(len(tenths))[::-1])

    return examples


def random_permutation(rng: np.random.Generator, count: int, steps: int) -> Examples:
    """A first symbol of two, then random symbols of 98 others; the class is the first symbol.

    In the paper the network predicts each next symbol, and the last one is equal to the first.  Nothing
    determines the others, so that only the last answer counts here.
    """
    symbols = rng.integers(2, SYMBOLS, (count, steps))
    symbols[:, 0] = rng.integers(0, 2, count)
    return _one_hot(symbols, SYMBOLS), symbols[:, 0]


def memorization(rng: np.random.Generator, count: int, steps: int) -> Examples:
    """Five bits, a pause, and a last step that asks for the bits; the targets are the bits.

    Each of the 32 sequences is there equally often among the training examples, and once among the test's.
    In the paper the answers follow one another in five more steps; here one answer has five logits.
    """
    every = _all_bits()
    mixed = rng.permutation(np.arange(count - len(every)) % len(every))
    bits = np.concatenate([every[mixed], every])
    symbols = np.full((count, steps), 2)
    symbols[:, :BITS], symbols[:, -1] = bits, 3
    return _one_hot(symbols, 4), bits.astype(np.float32)


def _all_bits() -> Integers:
    """Return all sequences of five bits, (32, 5)."""
    return np.arange(1 << BITS)[:, None] >> np.arange(BITS)[::-1] & 1


def _one_hot(symbols: Integers, kinds: int) -> NDArray[np.uint8]:
    """Return each symbol as 255, a pixel of 1, in its own channel; (N, T) → (N, T, kinds)."""
    return np.equal(symbols[..., None], np.arange(kinds)).astype(np.uint8) * np.uint8(255)


PROBLEMS: dict[str, Callable[[np.random.Generator, int, int], Examples]] = {
    "addition": addition,
    "multiplication": multiplication,
    "xor": xor,
    "temporal_order": _order(0, 4),
    "temporal_order_3": _order(0, 3, 5),
    "random_permutation": random_permutation,
    "memorization": memorization,
}
"""(generator, number of examples, T) → examples.

The order problems have four distracting symbols, and two or three places with one of two further symbols.
The class numbers these in their order.  Places are in the first and fifth tenth of the steps, or in the
first, fourth and sixth.
"""


class TanhRNN(nn.Module):
    """h_t = tanh(W h_{t−1} + V x_t + b) with h_0 = 0, and U h_T + c; (N, T, channels) → (N, outputs)."""

    def __init__(self, channels: int, units: int, outputs: int) -> None:
        super().__init__()
        self.input = nn.Linear(channels, units)
        self.hidden = nn.Linear(units, units, bias=False)
        self.output = nn.Linear(units, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences to answers."""
        answer: Tensor = self.output(self._states(x)[-1])
        return answer

    def with_states(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map sequences to answers (N, outputs) and the state of each step (N, units)."""
        states = self._states(x)
        return self.output(states[-1]), *states

    def _states(self, x: Tensor) -> list[Tensor]:
        """Return h_1, …, h_T, each (N, units)."""
        first, *others = self.input(x).unbind(dim=-2)  # one product for all steps
        states = [torch.tanh(first)]
        for given in others:
            states.append(torch.tanh(given + self.hidden(states[-1])))
        return states


def sparse_rnn(layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
    """Draw 15 incoming weights of each unit from N(0, 1/15), a quarter of it for inputs; → (P,) float32.

    Biases are 0, and the spectral radius of W is near 1.  With N(0, 1) it is near 4, and the states are
    chaotic.
    """
    weights = sparse(layout, seed, ones) / math.sqrt(INCOMING)
    for name, piece in zip(layout.names, layout.split(weights[None]), strict=True):
        if name == "input.weight":
            piece /= 4  # a view into the weights
    return weights


def rnn_100(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A recurrent network of 100 tanh units, whose outputs follow the last step; sparse initial weights."""
    _, channels = shape
    return TanhRNN(channels, 100, outputs)


def rnn_100_orthogonal(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The network `rnn_100` with orthogonal initial weights from state to state."""
    return rnn_100(shape, outputs)
