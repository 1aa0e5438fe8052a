"""Operations whose second derivative PyTorch lacks or computes wrongly, made of operations that have it.

Values and gradients are PyTorch's.  Options that are not listed here run PyTorch's own operation.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

HOOKS = r"Using `torch\.compile\(module\)` when there are global hooks"
"""A warning about hooks that a closure's call sets; they do not concern code that runs uncompiled."""


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what `torch.compile` made as plain Python: compiled code differentiates once."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled yet, and the import takes seconds
        yield
        return
    if not any(known is not None and known.pattern == HOOKS for _, known, *_ in warnings.filters):
        # Once: each new filter makes Python repeat the warnings that it has shown before.
        warnings.filterwarnings("ignore", message=HOOKS)
    with torch.compiler.set_stance("force_eager"):
        yield


def transformed() -> bool:
    """Tell whether a transform of `torch.func` is active: its tensors have no values to branch on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / ‖v‖, one norm for each index of `dim`; the dimension -1 means one norm in all.

    On a CPU the second derivative of PyTorch's operation is wrong.
    """
    others = [axis for axis in range(v.dim()) if axis != dim % v.dim()]
    norm = torch.linalg.vector_norm(v) if dim == -1 else torch.linalg.vector_norm(v, dim=others, keepdim=True)
    scale: Tensor = g / norm
    return v * scale


def recurrent(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a recurrent layer without cuDNN, whose kernels differentiate once."""

    def layer(*args: Any, **kwargs: Any) -> Any:
        if not args[0].is_cuda:
            return own(*args, **kwargs)
        with torch.backends.cudnn.flags(enabled=False):
            return own(*args, **kwargs)

    return layer


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sum, average or maximize rows of a table over bags, as `F.embedding_bag` does."""
    misused = (input.dim() == 1) == (offsets is None) or (per_sample_weights is not None and mode != "sum")
    if max_norm is not None or scale_grad_by_freq or sparse or misused or transformed():
        own: Callable[..., Tensor] = F.embedding_bag
        return own(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
            per_sample_weights, include_last_offset, padding_idx,
        )  # fmt: skip
    ids = input.reshape(-1)
    if offsets is None:
        bags, length = input.shape
        starts = torch.arange(bags, device=ids.device) * length
    else:
        starts = offsets.long()[: len(offsets) - include_last_offset]
    ends = torch.cat([starts[1:], starts.new_tensor([len(ids)])])
    if offsets is not None and include_last_offset:
        ends[-1:] = offsets[-1]
    bag = torch.searchsorted(ends, torch.arange(len(ids), device=ids.device), right=True)
    kept = bag < len(starts)
    if padding_idx is not None:
        kept = kept & (ids != padding_idx % len(weight))
    ids, bag = ids[kept], bag[kept]
    rows = F.embedding(ids, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1)[kept].unsqueeze(1)
    count = torch.bincount(bag, minlength=len(starts))
    if mode == "max":
        return _maxima(rows, bag, count)
    total = rows.new_zeros(len(starts), weight.shape[1]).index_add(0, bag, rows)
    return total if mode == "sum" else total / count.clamp(min=1).unsqueeze(1)


def _maxima(rows: Tensor, bag: Tensor, count: Tensor) -> Tensor:
    """Return the maximum over each bag, 0 for an empty one; a bag lies in adjacent rows."""
    first = count.cumsum(0) - count
    place = torch.arange(len(bag), device=bag.device) - first[bag]
    longest = int(count.max()) if len(count) else 0
    shape = (len(count), max(longest, 1), rows.shape[1])
    padded = rows.new_full(shape, -math.inf).index_put((bag, place), rows)
    return padded.max(dim=1).values.where((count > 0).unsqueeze(1), 0.0)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """−log of the probability of all alignments, by the forward recursion, as `F.ctc_loss` computes it."""
    if len(log_probs) == 0 or transformed():
        own: Callable[..., Tensor] = F.ctc_loss
        return own(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
    batched = log_probs.dim() == 3
    log_p = log_probs if batched else log_probs.unsqueeze(1)  # (T, N, C)
    log_p = log_p if log_p.dtype == torch.float64 else log_p.float()
    frames, count, _ = log_p.shape
    device = log_p.device
    seen = torch.as_tensor(input_lengths, device=device).reshape(-1).long()
    lengths = torch.as_tensor(target_lengths, device=device).reshape(-1).long()
    labels = _padded(targets.to(device).long(), lengths, count, blank)
    # Blanks stand between labels and at both ends: 2 S + 1 states.
    states = torch.full((count, 2 * labels.shape[1] + 1), blank, device=device)
    states[:, 1::2] = labels
    # A finite number in the place of −∞: the derivative of logsumexp at three times −∞ is NaN.
    never = torch.finfo(log_p.dtype).min / 1e4
    jump = torch.zeros_like(states, dtype=torch.bool)  # past a blank, between different labels
    jump[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    emitted = log_p.gather(2, states.expand(frames, -1, -1)).clamp(min=never)
    position = torch.arange(states.shape[1], device=device)
    alpha = emitted[0].where(position < 2, never)
    last = alpha
    for t in range(1, frames):
        one = F.pad(alpha, (1, 0), value=never)[:, :-1]
        two = F.pad(alpha, (2, 0), value=never)[:, : alpha.shape[1]].where(jump, never)
        alpha = torch.logsumexp(torch.stack([alpha, one, two]), dim=0) + emitted[t]
        last = alpha.where((seen == t + 1).unsqueeze(1), last)
    ends = torch.stack([2 * lengths, (2 * lengths - 1).clamp(min=0)], dim=1)
    final = last.gather(1, ends)
    # Without labels there is one end state, not two.
    final = torch.stack([final[:, 0], final[:, 1].where(lengths > 0, never)], dim=1)
    losses = -torch.logsumexp(final, dim=1)
    impossible = losses > -never / 2
    losses = losses.where(~impossible, 0.0 if zero_infinity else math.inf)
    if reduction == "mean":
        return (losses / lengths.clamp(min=1)).mean()
    return losses.sum() if reduction == "sum" else losses if batched else losses[0]


def _padded(targets: Tensor, lengths: Tensor, count: int, blank: int) -> Tensor:
    """Return the labels as (N, S): given so, of one example, or joined in one row."""
    if targets.dim() == 2:
        return targets
    longest = int(lengths.max()) if count else 0
    place = torch.arange(longest, device=targets.device)
    starts = lengths.cumsum(0) - lengths
    index = (starts.unsqueeze(1) + place).clamp(max=max(len(targets) - 1, 0))
    inside = place < lengths.unsqueeze(1)
    return targets[index].where(inside, blank) if len(targets) else index.new_zeros(count, 0)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ_i max(0, margin − x_y + x_i)^p / C over the wrong classes i, as `F.multi_margin_loss`."""
    if size_average is not None or reduce is not None:
        own: Callable[..., Tensor] = F.multi_margin_loss
        return own(input, target, p, margin, weight, size_average, reduce, reduction)
    x, y = _rows(input), target.reshape(-1, 1)
    hinge = (margin - x.gather(1, y) + x).clamp(min=0) ** p
    hinge = hinge if weight is None else hinge * weight[y]
    wrong = torch.arange(x.shape[1], device=x.device) != y
    return _reduced((hinge * wrong).sum(1) / x.shape[1], reduction, input.dim() < 2)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ max(0, 1 − x_j + x_i) / C over labels j and other classes i, as `F.multilabel_margin_loss`."""
    if size_average is not None or reduce is not None:
        own: Callable[..., Tensor] = F.multilabel_margin_loss
        return own(input, target, size_average, reduce, reduction)
    x, y = _rows(input), _rows(target)
    label = (y >= 0).cumprod(1).bool()  # the list of labels ends at the first negative number
    y = y.where(label, 0)
    other = torch.zeros_like(y).scatter_add(1, y, label.long()) == 0
    hinge = (1 - x.gather(1, y).unsqueeze(2) + x.unsqueeze(1)).clamp(min=0)
    pairs = label.unsqueeze(2) & other.unsqueeze(1)
    return _reduced((hinge * pairs).sum((1, 2)) / x.shape[1], reduction, input.dim() < 2)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() > 1 else tensor.unsqueeze(0)


def _reduced(losses: Tensor, reduction: str, single: bool) -> Tensor:
    if reduction == "none":
        return losses[0] if single else losses
    return losses.mean() if reduction == "mean" else losses.sum()


CORRECTED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    F.embedding_bag: embedding_bag,
    F.ctc_loss: ctc_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    **{own: recurrent(own) for own in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
}
"""PyTorch's operation → the one that takes its place in closures."""
