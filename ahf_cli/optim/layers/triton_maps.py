"""The three maps of a selection as Triton kernels, for a GPU; Triton's interpreter runs them on a CPU.

No kernel adds to a number that another program writes: sums have one order, so that a run repeats bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ahf_cli.optim.layers.selection import SLACK, Selection

BLOCK = 128
"""Numbers of one program, a power of 2; not measured."""
CHUNK = 16
"""Examples of one program of `to_weight`; the sum over chunks is PyTorch's.  Not measured."""


class TritonSelection(Selection):
    """The three maps as one kernel each."""

    def forward(
        self, x: Tensor, w: Tensor, b: Tensor | None, u: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """y = x ∗ w + u ∗ v + b at the selected positions, 0 elsewhere."""
        s, trials = self.shape, len(self.at)
        y = w.new_zeros(self.at.shape)
        two = u is not None and v is not None
        w, biased = w.contiguous(), b is not None
        b = w if b is None else b.contiguous()
        u, v = (u, v.contiguous()) if u is not None and v is not None else (x, w)
        _forward[trials * s.images, triton.cdiv(s.channels * s.places, BLOCK)](
            x, w, b, u, v, self.at, y, s.images, self._row(x), self._row(u), b.stride(0),
            **self._sizes(), biased=biased, two=two,
        )  # fmt: skip
        return y

    def to_input(self, y: Tensor, w: Tensor, z: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """Apply the transposes of x ↦ x ∗ w and u ↦ u ∗ v to y and z, and add; → (K, N, image)."""
        s, trials, p = self.shape, len(self.at), self.shape.pooling
        x = y.new_zeros(trials, s.images, s.image)
        two = z is not None and v is not None
        y, w = y.contiguous(), w.contiguous()
        z, v = (z.contiguous(), v.contiguous()) if z is not None and v is not None else (y, w)
        # Pooled rows, and columns, whose window can hold one pixel.
        reach = [(s.kernel[i] - 1 + (p.kernel[i] - 1) * p.dilation[i]) // p.stride[i] + 1 for i in (0, 1)]
        _to_input[trials * s.images, triton.cdiv(s.image - SLACK, BLOCK)](
            y, w, z, v, self.at, x, s.images, **self._sizes(), numbers=s.image - SLACK,
            pooled_rows=s.pooled[0], pooled_columns=s.pooled[1],
            stride_down=p.stride[0], stride_right=p.stride[1], pad_down=p.padding[0],
            pad_right=p.padding[1], reach_down=reach[0], reach_right=reach[1], two=two,
        )  # fmt: skip
        return x

    def to_weight(
        self, y: Tensor, x: Tensor, z: Tensor | None = None, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the transposes of w ↦ x ∗ w and v ↦ u ∗ v to y and z, and add; and sum y for b."""
        s, trials = self.shape, len(self.at)
        chunks, taps = triton.cdiv(s.images, CHUNK), s.depth * s.kernel[0] * s.kernel[1]
        w = y.new_zeros(chunks, trials, s.channels, taps)
        b = y.new_zeros(chunks, trials, s.channels)
        two = z is not None and u is not None
        y = y.contiguous()
        z, u = (z.contiguous(), u) if z is not None and u is not None else (y, x)
        lanes = min(triton.next_power_of_2(taps), 64)
        _to_weight[trials * s.channels, chunks, triton.cdiv(taps, lanes)](
            y, x, z, u, self.at, w, b, s.images, self._row(x), self._row(u), trials,
            **self._sizes(), two=two, chunk=CHUNK, lanes=lanes,
        )  # fmt: skip
        return w.sum(dim=0).view(trials, s.channels, s.depth, *s.kernel), b.sum(dim=0)

    @staticmethod
    def _row(x: Tensor) -> int:
        return 0 if len(x) == 1 else x.stride(0)

    def _sizes(self) -> dict[str, int]:
        s = self.shape
        channel, place = s.strides(self.last)
        return {
            "image": s.image, "width": s.width, "depth": s.depth, "channels": s.channels,
            "places": s.places, "rows": s.kernel[0], "columns": s.kernel[1], "output": s.output(self.last),
            "channel_step": channel, "place_step": place, "block": BLOCK,
        }  # fmt: skip


@triton.jit
def _forward(
    x, w, b, u, v, at, y, images, x_row, u_row, b_row,
    image: tl.constexpr, width: tl.constexpr, depth: tl.constexpr, channels: tl.constexpr,
    places: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, output: tl.constexpr,
    channel_step: tl.constexpr, place_step: tl.constexpr, block: tl.constexpr,
    biased: tl.constexpr, two: tl.constexpr,
):  # fmt: skip
    """Compute a block of outputs of one example: each the product of its window and its kernel."""
    example = tl.program_id(0).to(tl.int64)
    trial, n = example // images, example % images
    o = tl.program_id(1) * block + tl.arange(0, block)
    inside = o < channels * places
    c, place = o // places, o % places
    to = example * output + c * channel_step + place * place_step
    window = tl.load(at + to, mask=inside, other=-1)
    chosen = window >= 0
    x_from = x + trial * x_row + n * image + window
    u_from = u + trial * u_row + n * image + window
    kernel = (trial * channels + c) * depth * rows * columns
    total = tl.zeros([block], dtype=y.dtype.element_ty)
    for d in range(depth):
        for i in range(rows):
            for j in range(columns):
                offset, tap = (i * width + j) * depth + d, (d * rows + i) * columns + j
                total += tl.load(x_from + offset, mask=chosen, other=0) * tl.load(
                    w + kernel + tap, mask=chosen, other=0
                )
                if two:
                    total += tl.load(u_from + offset, mask=chosen, other=0) * tl.load(
                        v + kernel + tap, mask=chosen, other=0
                    )
    if biased:
        total += tl.load(b + trial * b_row + c, mask=chosen, other=0)
    tl.store(y + to, tl.where(chosen, total, 0.0), mask=inside)


@triton.jit
def _to_input(
    y, w, z, v, at, x, images,
    image: tl.constexpr, width: tl.constexpr, depth: tl.constexpr, channels: tl.constexpr,
    places: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, output: tl.constexpr,
    channel_step: tl.constexpr, place_step: tl.constexpr, block: tl.constexpr,
    numbers: tl.constexpr, pooled_rows: tl.constexpr, pooled_columns: tl.constexpr, stride_down: tl.constexpr,
    stride_right: tl.constexpr, pad_down: tl.constexpr, pad_right: tl.constexpr,
    reach_down: tl.constexpr, reach_right: tl.constexpr, two: tl.constexpr,
):  # fmt: skip
    """Compute a block of numbers of one image: each the sum over the selected windows that hold it."""
    example = tl.program_id(0).to(tl.int64)
    trial = example // images
    number = tl.program_id(1) * block + tl.arange(0, block)
    inside = number < numbers
    d, pixel = number % depth, number // depth
    line, column = pixel // width, pixel % width
    down, right = (line + pad_down) // stride_down, (column + pad_right) // stride_right
    total = tl.zeros([block], dtype=x.dtype.element_ty)
    for c in range(channels):
        kernel = ((trial * channels + c) * depth + d) * rows * columns
        for a in range(reach_down):
            for e in range(reach_right):
                # The a-th pooled row above, and the e-th column to the left.
                row, place = down - a, right - e
                there = inside & (row >= 0) & (row < pooled_rows) & (place >= 0) & (place < pooled_columns)
                source = example * output + c * channel_step + (row * pooled_columns + place) * place_step
                window = tl.load(at + source, mask=there, other=-1)
                start = window // depth
                i, j = line - start // width, column - start % width
                held = there & (window >= 0) & (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
                tap = kernel + i * columns + j
                total += tl.load(y + source, mask=held, other=0) * tl.load(w + tap, mask=held, other=0)
                if two:
                    total += tl.load(z + source, mask=held, other=0) * tl.load(v + tap, mask=held, other=0)
    tl.store(x + example * image + number, total, mask=inside)


@triton.jit
def _to_weight(
    y, x, z, u, at, w, b, images, x_row, u_row, trials,
    image: tl.constexpr, width: tl.constexpr, depth: tl.constexpr, channels: tl.constexpr,
    places: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, output: tl.constexpr,
    channel_step: tl.constexpr, place_step: tl.constexpr, block: tl.constexpr,
    two: tl.constexpr, chunk: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Compute a block of one kernel's entries, and its bias, over the windows of some examples."""
    kernel = tl.program_id(0).to(tl.int64)
    trial, c = kernel // channels, kernel % channels
    taps: tl.constexpr = depth * rows * columns
    tap = tl.program_id(2) * lanes + tl.arange(0, lanes)
    inside = tap < taps
    d, i, j = tap // (rows * columns), tap // columns % rows, tap % columns
    offset = (i * width + j) * depth + d
    total = tl.zeros([lanes], dtype=w.dtype.element_ty)
    bias = tl.zeros([block], dtype=w.dtype.element_ty)
    first = tl.program_id(1) * chunk
    for n in range(first, tl.minimum(first + chunk, images)):
        for begin in range(0, places, block):
            place = begin + tl.arange(0, block)
            source = (trial * images + n) * output + c * channel_step + place * place_step
            window = tl.load(at + source, mask=place < places, other=-1)
            chosen = window >= 0
            one = tl.load(y + source, mask=chosen, other=0)
            bias += one
            both = chosen[:, None] & inside[None, :]
            entry = (n * image + window)[:, None] + offset[None, :]
            total += tl.sum(one[:, None] * tl.load(x + trial * x_row + entry, mask=both, other=0), axis=0)
            if two:
                change = tl.load(z + source, mask=chosen, other=0)
                pixels = tl.load(u + trial * u_row + entry, mask=both, other=0)
                total += tl.sum(change[:, None] * pixels, axis=0)
    part = (tl.program_id(1) * trials * channels).to(tl.int64) + kernel
    tl.store(w + part * taps + tap, total, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(b + part, tl.sum(bias, axis=0))
