"""Whether a target moves: told by the bits of the weights, from one report of a monitor to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import unwrap

__all__ = ["Following", "fingerprint", "mark_of"]

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Following:
    """What is known of a target from report to report: has it moved at all, and how often had the encoder by itself.

    A target that moved once is not looked at again: at the end of a schedule whose momentum goes to 1 its weights may
    rest for many steps.
    """

    def __init__(self) -> None:
        self.moved = False
        self.since = 0  # step of the first look
        self.alone = 0  # looks at which the encoder had moved and the target never had
        # The encoder's weights at the last look, the target's at the first.
        self.seen: tuple[float, float] | None = None

    def look(self, encoder: float, target: float, step: int) -> None:
        """Compare with what was seen before."""
        if self.seen is None:
            self.since, self.seen = step, (encoder, target)
        elif target != self.seen[1]:
            self.moved = True
        elif encoder != self.seen[0]:
            self.alone, self.seen = self.alone + 1, (encoder, target)

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        seen = None if self.seen is None else list(self.seen)
        return {"moved": self.moved, "since": self.since, "alone": self.alone, "seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.moved, self.since, self.alone = bool(state["moved"]), int(state["since"]), int(state["alone"])
        self.seen = None if state["seen"] is None else (state["seen"][0], state["seen"][1])


def mark_of(target: nn.Module) -> Float[Tensor, ""] | None:
    """What changes when a target moves: its count of updates `step`, if it keeps one, else its weights.

    None of a target without weights, which is the encoder itself.
    """
    weights = fingerprint(target)
    step = getattr(unwrap(target), "step", None)
    return weights if weights is None or not isinstance(step, int) else torch.full_like(weights, step)


@torch.no_grad()
def fingerprint(module: nn.Module) -> Float[Tensor, ""] | None:
    """A whole number below 2⁵² that depends on every bit of the weights; None without weights."""
    found = None
    for weight in module.parameters():
        here: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight  # the shard of this process
        if here.is_floating_point():
            bits = here.detach().view(BITS[here.element_size()]).sum(dtype=torch.int64)
            found = bits if found is None else 31 * found + bits.to(found.device)
    return None if found is None else (found % 2**52).double()
