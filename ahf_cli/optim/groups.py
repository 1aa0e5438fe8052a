"""Parameter groups of `torch.optim`: one linear system spans them all, so that they share every value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, nearest

Group = dict[str, Any]

DECAY = "weight_decay"
"""The hyperparameter that each group has for itself."""
PLAIN = ("params", "param_names", "name", "initial_lr", "max_lr", "min_lr")
"""Keys of a group other than hyperparameters: keys of PyTorch and its schedulers, and a free `name`."""


def number(name: str, value: Any) -> float:
    """Return a hyperparameter's value, a number or a tensor of one element, as a float.

    Raises ValueError naming the rule, the hyperparameter and the value.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return HYPERPARAMETERS[name].check(float(value))


def completed(group: Mapping[str, Any], hyperparameters: Collection[str], others: Sequence[Group]) -> Group:
    """Return a new group with its values checked; absent values come from the other groups.

    Raises ValueError for an unknown key, a bad value or a repeated parameter.
    """
    for key in group:
        if key not in PLAIN and key != DECAY and key not in hyperparameters:
            known = (*hyperparameters, DECAY, "params", "name")
            raise ValueError(f"unknown key {key!r} in a parameter group{nearest(str(key), known)}")
    values = {name: number(name, group[name]) for name in (*hyperparameters, DECAY) if name in group}
    shared = {name: others[0][name] for name in hyperparameters if others}
    result = {**shared, **group, **values}
    if not isinstance(result.get("params"), Tensor | set | None):  # PyTorch accepts or refuses these itself
        result["params"] = list(result["params"])
        # A named parameter is a pair (name, tensor).
        items = [item[1] if isinstance(item, tuple) else item for item in result["params"]]
        if len({id(item) for item in items}) < len(items):
            raise ValueError("a parameter is there twice: give tied weights once, as model.parameters() does")
    return result


def names(groups: Sequence[Group]) -> list[str]:
    """Return the names that `named_parameters` gave, else `parameter N` by position."""
    found: list[str] = []
    for group in groups:
        numbered = [f"parameter {len(found) + i}" for i in range(len(group["params"]))]
        found += group.get("param_names", numbered)
    return found


def parameters(groups: Sequence[Group]) -> list[Tensor]:
    """Return all parameters of all groups.

    Raises ValueError unless they are trainable, dense and all float32 or all float64, on one device.
    """
    found: list[Tensor] = [p for group in groups for p in group["params"]]
    named = list(zip(names(groups), found, strict=True))
    # Checked at each step: `requires_grad`, dtype and device may change after construction.
    if frozen := [name for name, p in named if not p.requires_grad]:
        raise ValueError(
            f"{', '.join(frozen)}: requires_grad is False; leave frozen parameters out of the optimizer"
        )
    for name, p in named:
        if p.dtype not in (torch.float32, torch.float64):
            advice = ": for lower precision run the forward pass under torch.autocast"
            if p.is_complex():
                advice = ": keep torch.view_as_real(p), and use torch.view_as_complex in the closure"
            raise ValueError(f"parameters must be float32 or float64, got {p.dtype} for {name}{advice}")
        if p.layout != torch.strided:
            raise ValueError(f"parameters must be dense, got {p.layout} for {name}")
    kinds = {f"{p.dtype} on {p.device}" for p in found}
    if len(kinds) > 1:
        raise ValueError(f"all parameters must have one dtype and device, got {', '.join(sorted(kinds))}")
    return found


def shared_values(groups: Sequence[Group], hyperparameters: Collection[str]) -> dict[str, float]:
    """Return the hyperparameters, which must be equal in all groups.

    A step size of 0 is allowed: schedulers start or end with it.  Raises ValueError.
    """
    first, *others = groups
    for group in others:
        for name in hyperparameters:
            if group[name] != first[name]:
                raise ValueError(
                    f"{name} must be equal in all parameter groups, since one linear system spans them: "
                    f"got {first[name]!r} and {group[name]!r}"
                )
    return {
        name: 0.0 if name == "lr" and first[name] == 0 else number(name, first[name])
        for name in hyperparameters
    }


def check_saved(
    saved: Mapping[str, Any],
    structure: Mapping[str, Any],
    hyperparameters: Collection[str],
    vectors: Collection[str],
    own: Sequence[Group],
) -> None:
    """Raise ValueError unless a saved `state_dict` fits an optimizer with these groups.

    Args:
        saved: the result of `state_dict()`.
        structure: choices of the optimizer that loads.
        hyperparameters: names in the recipe of the optimizer that loads.
        vectors: names of the vectors that the recipe keeps for each parameter, in its shape.
        own: groups of the optimizer that loads.
    """
    if not {"state", "param_groups"} <= saved.keys():
        raise ValueError("no state of an optimizer: it has no 'state' and 'param_groups'")
    before = saved.get("structure", structure)
    for key in structure | before:
        if structure.get(key) != before.get(key):
            raise ValueError(
                f"the saved state is of another structure: {key} was {before.get(key)!r} there, and is "
                f"{structure.get(key)!r} here"
            )
    for group in saved["param_groups"]:
        found = [name for name in HYPERPARAMETERS if name in group and name not in ("lr", DECAY)]
        if set(found) != set(hyperparameters) - {"lr"}:
            raise ValueError(
                "the saved state is of another recipe: "
                f"it has {', '.join(found) or 'no hyperparameter'}, this one {', '.join(hyperparameters)}"
            )
    keys = chain.from_iterable(group["params"] for group in saved["param_groups"])
    mine = zip(names(own), chain.from_iterable(group["params"] for group in own), strict=True)
    for key, (name, p) in zip(keys, mine, strict=False):  # PyTorch itself compares the numbers of parameters
        kept = saved["state"].get(key, {})
        if kept and (absent := set(vectors) - kept.keys()):
            raise ValueError(f"the saved state is of another recipe: it has no {', '.join(sorted(absent))}")
        if kept and kept["direction"].shape != p.shape:
            raise ValueError(
                f"the saved state is of another model: {name} has shape {tuple(p.shape)}, "
                f"and was {tuple(kept['direction'].shape)}"
            )
