"""Muon: steepest descent in the spectral norm on matrices (Jordan et al. 2024), AdamW on all else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.explicit import At, FirstOrderOptimizer, adamw_update
from ahf_cli.optim.moments import Moments

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration X ← a X + (b XXᵀ + c (XXᵀ)²) X, whose fixed points lie around singular value 1."""
ITERATIONS = 5
SMALLEST = 1e-7
"""Frobenius norm below which a matrix is not divided by it."""


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices with the singular vectors of the given ones, and singular values near 1; (K, m, n).

    After five iterations the values lie in about [0.7, 1.2], but for those that were below 1e-3 of the norm.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / rows.l2(x.flatten(1)).clamp_min(SMALLEST)[:, None, None]
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _muon(at: At) -> tuple[Tensor, Moments]:
    """Return Muon's update of every matrix, a convolution as out × in·k², and AdamW's of all else.

    The factor 0.2 √max(m, n) gives an update the root mean square of AdamW's: one α serves both.
    """
    g, momentum = at.g, at.value("momentum")
    buffer = torch.lerp(at.moments["momentum_buffer"], g, 1 - momentum)
    ahead = torch.lerp(g, buffer, momentum)
    rest, moments = adamw_update(at)
    decay = (at.h["lr"] * at.h["weight_decay"]).to(g)
    pieces = []
    both = zip(
        at.layout.split(ahead),
        at.layout.split(rest),
        at.layout.split(at.theta),
        at.layout.shapes,
        strict=True,
    )
    for own, other, theta, shape in both:
        if len(shape) < 2:
            pieces.append(other)
            continue
        matrix = orthogonalized(own.flatten(2))
        factor = 0.2 * math.sqrt(max(matrix.shape[-2:])) * at.value("lr")
        update = -rows.expand(factor) * matrix - rows.expand(decay) * theta.flatten(2)
        pieces.append(update.reshape(own.shape))
    return at.layout.join(pieces, len(g)), {**moments, "momentum_buffer": buffer}


muon = FirstOrderOptimizer(("exp_avg", "exp_avg_sq", "momentum_buffer"), _muon)
