"""K-FAC and EKFAC: the Fisher matrix as one Kronecker product a layer, with a memory over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.layer_statistics import Draw, FisherSample, LayerStatistics
from ahf_cli.optim.moments import Moments
from ahf_cli.optim.preconditioners import Fitted, Surroundings
from ahf_cli.optim.rows import Layout

DECAY = 0.95
"""Largest decay of the factors' moving averages (Martens and Grosse 2015, §5)."""
PART = 4
"""A renewal of the recipes sees a quarter of the batch."""
EARLY = 3
"""The first steps renew the factors each time."""


@dataclass(frozen=True)
class Kfac:
    """F ≈ A ⊗ G for each layer, with A = E Σ_t a aᵀ and G = E ḡ ḡᵀ (Martens and Grosse 2015; 2016).

    The vectors a are a layer's inputs at T positions t, with a last 1 for its bias.  A convolution's input is
    a patch.  In an equation the positions are the value and its derivatives, and the value alone has the 1
    (Dangel et al. 2024).  The vectors ḡ are the cotangents of the layer's outputs, for labels that are drawn
    from the model.  E is the mean over examples, for G also over positions.  A and G are moving averages.
    They are renewed every `renewal` steps, and in each of the first three.  Parameters of other layers have a
    diagonal.

    (F + λI)⁻¹ ≈ (A + π√λ I)⁻¹ ⊗ (G + √λ/π I)⁻¹ with π² = (tr A / dim A)/(tr G / dim G).

    Args:
        renewal: steps between two renewals, ≥ 1.
        corrected: EKFAC (George et al. 2018): in the eigenbases U of A and G, F has a diagonal S, and
            (S + λ)⁻¹ replaces the inverses.  S = E (Σ_t (U_Gᵀ ḡ)(U_Aᵀ a)ᵀ)² on the batch of the renewal.
        exact: all of the loss's curvature in place of drawn labels, by C backward passes.
        part: a renewal sees the first N/part examples of a batch, and at least 32 (2015, §8: a part of 8).
            It sees all points of an equation.
    """

    renewal: int = 10
    corrected: bool = False
    exact: bool = False
    part: int = 1

    def __call__(self, at: Surroundings) -> Fitted:
        """Renew the factors if it is time, and return (F + λI)⁻¹."""
        layout, memory = at.evaluation.layout, at.memory
        if "renewals" in memory and at.t % self.renewal and at.t >= EARLY:
            return Fitted(_Blocks(layout, memory, self.corrected), memory)
        found = (at.curvature or at.evaluation).fisher(Draw(at.t, self.exact, self.part))
        own = self._renewed(found, memory, at.damping + found.shift, layout)
        passes = len(found.layers[0].cotangents) if found.layers else 1
        return Fitted(_Blocks(layout, own, self.corrected), own, gradients=passes)

    def _renewed(self, found: FisherSample, memory: Moments, damping: Tensor, layout: Layout) -> Moments:
        count = memory["renewals"] + 1 if "renewals" in memory else torch.ones_like(damping)
        decay = (1 - 1 / count).clamp_max(DECAY)
        own: Moments = {"renewals": count, "fisher.damping": damping}
        for layer in found.layers:
            name = layout.names[layer.weight]
            a, g = layer.inputs.flatten(1, 2), layer.cotangents.flatten(2, 3)
            examples, positions = layer.inputs.shape[1:3]
            new = {
                "A": a.mT @ a / examples,
                "G": sum((s.mT @ s for s in g[1:]), g[0].mT @ g[0]) / (examples * positions),
            }
            factors = {
                key: _moved(memory.get(f"{name}.{key}"), found.mean(value), decay)
                for key, value in new.items()
            }
            solved = _eigen(factors, layer, found.mean) if self.corrected else _inverses(factors, damping)
            own |= {f"{name}.{key}": value for key, value in {**factors, **solved}.items()}
        if found.rest is not None:
            own["rest"] = _moved(memory.get("rest"), found.mean(found.rest), decay)
        return own


def _eigen(
    factors: Mapping[str, Tensor], layer: LayerStatistics, mean: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the eigenbases U_A and U_G, and S in them, (K, out, in)."""
    left, right = (_eigenvectors(factors[key]) for key in ("G", "A"))
    a = layer.inputs @ right[:, None]
    g = layer.cotangents @ left[:, None]
    if layer.inputs.shape[2] == 1:  # one position: the square of an outer product
        a2, g2 = a.squeeze(2).square(), g.squeeze(3).square()
        scale = sum((s.mT @ a2 for s in g2[1:]), g2[0].mT @ a2)
    else:
        first, *more = ((s.mT @ a).square().sum(dim=1) for s in g)
        scale = sum(more, first)
    return {"a": right, "g": left, "s": mean(scale / layer.inputs.shape[1])}


def _moved(before: Tensor | None, new: Tensor, decay: Tensor) -> Tensor:
    """Return d before + (1 − d) new."""
    if before is None:
        return new
    return torch.lerp(new, before, decay.view(-1, *[1] * (new.dim() - 1)))


def _inverses(factors: Mapping[str, Tensor], damping: Tensor) -> dict[str, Tensor]:
    """Return (A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹."""
    mean = {key: factors[key].diagonal(dim1=-2, dim2=-1).mean(dim=-1) for key in factors}
    tiny = torch.finfo(damping.dtype).tiny
    pi = (mean["A"].clamp_min(tiny) / mean["G"].clamp_min(tiny)).sqrt()
    root = damping.sqrt()
    return {"a": _inverse(factors["A"], pi * root), "g": _inverse(factors["G"], root / pi)}


def _inverse(matrix: Tensor, shift: Tensor) -> Tensor:
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    # No error where a row has diverged: its factor is not finite, and the row takes no step.
    root, _ = torch.linalg.cholesky_ex(matrix + shift[:, None, None] * eye)
    return torch.cholesky_inverse(root)


def _eigenvectors(matrix: Tensor) -> Tensor:
    finite = torch.isfinite(matrix).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    vectors: Tensor = torch.linalg.eigh(torch.where(finite, matrix, torch.zeros_like(matrix))).eigenvectors
    return vectors


@dataclass(frozen=True)
class _Blocks:
    """(F + λI)⁻¹ from the memory of the last renewal."""

    layout: Layout
    memory: Moments
    corrected: bool

    def solve(self, vectors: Tensor) -> Tensor:
        """Return (F + λI)⁻¹ v layer by layer; (K, P) → (K, P)."""
        memory, damping = self.memory, self.memory["fisher.damping"]
        pieces: list[Tensor] = list(self.layout.split(vectors))
        rest = memory.get("rest")
        others = None if rest is None else self.layout.split(vectors / (rest + rows.expand(damping)))
        done = set()
        for name in self.layout.names:
            if f"{name}.a" not in memory:
                continue
            weight = self.layout.names.index(name)
            a, g = memory[f"{name}.a"], memory[f"{name}.g"]
            v = pieces[weight].flatten(2)
            bias = self._bias(name) if a.shape[-1] > v.shape[-1] else None
            if bias is not None:
                v = torch.cat([v, pieces[bias].unsqueeze(-1)], dim=-1)
            if self.corrected:
                inner = g.mT @ v @ a / (memory[f"{name}.s"] + damping[:, None, None])
                v = g @ inner @ a.mT
            else:
                v = g @ v @ a
            if bias is not None:
                v, pieces[bias] = v[..., :-1], v[..., -1]
                done.add(bias)
            pieces[weight] = v.reshape(len(v), *self.layout.shapes[weight])
            done.add(weight)
        if others is not None:
            pieces = [p if n in done else others[n] for n, p in enumerate(pieces)]
        return self.layout.join(pieces, len(vectors))

    def select(self, trials: Tensor) -> _Blocks:
        """Return the inverse of some rows."""
        return _Blocks(self.layout, {k: v[trials] for k, v in self.memory.items()}, self.corrected)

    def _bias(self, name: str) -> int:
        return self.layout.names.index(f"{name.removesuffix('weight')}bias")


def kfac(renewal: int) -> Kfac:
    """Return K-FAC with drawn labels."""
    return Kfac(renewal, part=PART)


def ekfac(renewal: int) -> Kfac:
    """Return EKFAC with drawn labels."""
    return Kfac(renewal, corrected=True, part=PART)
