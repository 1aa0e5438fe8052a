"""The declaration of a part: one choice of a recipe, with its formula, sentence and hyperparameters."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Words = Callable[[Mapping[str, Any], Mapping[str, float]], str]
"""(all choices of a recipe, its fixed hyperparameters) ↦ the sentence of a part in that recipe."""


@dataclass(frozen=True)
class Part:
    """The declaration of one choice in a slot."""

    where: str | Callable[..., Any] = ""
    """`module:name` under `ahf_cli.optim`, or the object itself; "" for a choice without code"""
    formula: str = ""
    """its term of the update rule in lists and documents; "" if it does not change the rule"""
    sentence: str | Words = ""
    """its meaning for training, for captions; "" if it needs no words"""
    uses: tuple[str, ...] = ()
    """names of the hyperparameters that it reads"""
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """slot → its allowed choices in that slot; an absent slot allows all"""
    settings: tuple[str, ...] = ()
    """numbers of the structure that its class is made with"""
    likelihood: bool = False
    """whether the loss must be the negative log-likelihood of a known distribution"""
    squares: bool = False
    """whether the loss must be a sum of squares"""
    states: bool = False
    """whether the model must give its hidden states"""

    def find(self) -> Any:
        """Import the module of the part, and return its class or function."""
        found = self.where
        return pkgutil.resolve_name(f"ahf_cli.optim.{found}") if isinstance(found, str) else found

    def make(self) -> Any:
        """Return the part: a new instance of a class, or the function itself."""
        found = self.find()
        return found() if isinstance(found, type) else found

    @property
    def place(self) -> tuple[str, str]:
        """Name and file of its code; the file is relative to the repository, or a plug-in's path."""
        if isinstance(self.where, str):
            module, _, name = self.where.partition(":")
            return name, f"ahf_cli/optim/{module.replace('.', '/')}.py"
        return getattr(self.where, "__name__", type(self.where).__name__), inspect.getfile(
            inspect.unwrap(self.where)
        )

    def said(self, choices: Mapping[str, Any], fixed: Mapping[str, float]) -> str:
        """Return its sentence, given all choices of a recipe."""
        return self.sentence if isinstance(self.sentence, str) else self.sentence(choices, fixed)
