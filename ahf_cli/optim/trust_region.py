"""Steihaug's trust region: CG on the undamped model q within a ball, for K systems at once."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.cg import CGResult, Rules, Stop
from ahf_cli.optim.operators import Operator


def steihaug(
    operator: Operator,
    damping: Tensor,
    gradient: Tensor,
    rules: Rules,
    max_iterations: int,
    active: Tensor,
    check_every: int = 1,
    keep: Collection[int] = (),
) -> CGResult:
    """Minimize q(s) = gᵀs + ½ sᵀBs over ‖s‖ ≤ ‖g‖/λ by CG from 0 (Steihaug 1983; Toint 1981).

    CG goes to the boundary along d and stops there if dᵀBd ≤ 0, or if its next iterate lies outside.  The
    norms of its iterates grow, so that none of them comes back.  ‖g‖/λ bounds the damped direction
    (B + λI)⁻¹g of any B ⪰ 0 as well: λ has the unit of B, and the damping rule moves the radius.
    One product an iteration; arguments and result as in `conjugate_gradient`, with r = −g − (B + λI)s.
    """
    r = -gradient
    x, d = torch.zeros_like(r), r
    rr = rows.dot(r, r)
    radius2, tolerance = rr / damping.square(), rules.residual_tolerance(rr)
    phi = [torch.zeros_like(rr)]
    count = torch.zeros_like(active, dtype=torch.int64)
    stop = torch.zeros_like(count)
    going = active
    kept = []

    def finish(mask: Tensor, reason: Stop) -> Tensor:
        nonlocal stop
        stop = torch.where(going & mask, int(reason), stop)
        return going & ~mask

    for n in range(max_iterations):
        going = finish(rr <= tolerance, Stop.RESIDUAL)
        if n % check_every == 0 and not bool(going.any()):
            break
        image = operator(d)
        curvature = rows.dot(d, image)
        length = rr / curvature
        xd, dd = rows.dot(x, d), rows.dot(d, d)
        # The positive root of ‖x + τd‖ = radius, in the form without cancellation (xᵀd ≥ 0).
        gap = (radius2 - rows.dot(x, x)).clamp_min(0)
        edge = gap / (xd + (xd.square() + dd * gap).sqrt())
        flat = ~(curvature > 0)
        outside = ~flat & ~(length < edge)
        length = torch.where(flat | outside, edge, length)
        moves, step = rows.expand(going), rows.expand(length)
        x = torch.where(moves, torch.addcmul(x, step, d), x)
        r = torch.where(moves, torch.addcmul(r, step, image, value=-1), r)
        count = count + going
        # dᵀr = rᵀr: d is r plus a multiple of the last direction, to which r is orthogonal.
        phi.append(phi[-1] + length * (0.5 * length * curvature - rr))
        if n + 1 in keep:
            kept.append((x.clone(), _along(r, x, damping)))
        going = finish(flat, Stop.NEGATIVE_CURVATURE)
        going = finish(outside, Stop.BOUNDARY)
        after = rows.dot(r, r)
        going = finish(~(after < torch.inf), Stop.NOT_FINITE)
        slow = rules.progress_stop(phi)
        if slow is not None:
            going = finish(slow, Stop.PROGRESS)
        d = torch.where(rows.expand(going), torch.addcmul(r, rows.expand(after / rr), d), d)
        rr = torch.where(going, after, rr)
    finish(going, Stop.MAX_ITERATIONS)
    residual = r - rows.expand(damping) * x
    return CGResult(x, residual, count, count, stop, _along(r, x, damping), tuple(kept))


def _along(r: Tensor, x: Tensor, damping: Tensor) -> Tensor:
    """Return the damped residual along x, from the residual r = −g − Bx."""
    return rows.dot(r, x) - damping * rows.dot(x, x)
