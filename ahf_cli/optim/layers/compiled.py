"""The compiled maps, if this installation has them, and the name of the numerical path on each device."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Literal

Numerics = Literal["compiled", "pytorch", "cuda", "triton"]
"""Ways of computing losses and products that round differently."""
SWITCH = "AHF_COMPILED"
"""Environment variable; `no` leaves the compiled maps unused."""
TRITON = "AHF_TRITON"
"""Environment variable; `yes` lets a GPU take the Triton kernels.  It is no default: no GPU has run them."""


def _load() -> tuple[ModuleType | None, str]:
    """Return the compiled maps, or None and the reason."""
    if os.environ.get(SWITCH, "").lower() in ("no", "0", "false"):
        return None, f"{SWITCH}={os.environ[SWITCH]}"
    try:
        import ahf_cli.optim.layers._selected as found

        _ = found.instructions()
    except ModuleNotFoundError:
        return None, "this installation has none: not built, or built without a C compiler"
    except (ImportError, OSError, AttributeError) as error:
        return None, str(error).splitlines()[0]
    return found, ""


COMPILED, REASON = _load()


def numerics(device: str) -> Numerics:
    """Return the numerical path on a device, such as `cpu` or `cuda`."""
    if device == "cpu":
        return "pytorch" if COMPILED is None else "compiled"
    return "triton" if device == "cuda" and os.environ.get(TRITON, "").lower() in ("yes", "1") else "cuda"


def described() -> str:
    """Return the numerical path of the CPU as words."""
    if COMPILED is None:
        return f"convolutions by PyTorch; no compiled layers ({REASON})"
    return f"compiled layers for {COMPILED.instructions()}"
