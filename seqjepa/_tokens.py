"""What an aggregator reads: each view beside the action that leaves it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seqjepa._checks import check_axes, check_like
from seqjepa.aggregator import last_view

__all__ = ["step_of", "tokens_of"]


def tokens_of(
    z: Float[Tensor, "B T D"], e: Float[Tensor, "B steps E"], mask: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B T S"]:
    """Views and the actions that leave them side by side, S = D + E; the slot of a row's last view is zero."""
    check_axes("z", z, "B T D")
    check_axes("e", e, "B T E")
    if e.shape[2] and e.device != z.device:
        raise ValueError(f"z and e must lie on one device; got {z.device} and {e.device}. Move one: e.to(z.device).")
    if not e.shape[2]:
        e = z.new_zeros(e.shape)  # no numbers: whatever dtype and device the actions had
    elif torch.promote_types(e.dtype, z.dtype) != z.dtype:
        check_like("e", e, z)  # half precision and float32 meet in the wider one; float64 must be meant
    n, m = z.shape[1], e.shape[1]
    if m != n - 1 or z.shape[0] != e.shape[0]:
        raise ValueError(
            f"{n} views have {n - 1} actions between them; got z of shape {tuple(z.shape)} and e of shape "
            f"{tuple(e.shape)}. The action that leaves the last view goes to predict()."
        )
    slots = torch.cat([e, e.new_zeros(e.shape[0], 1, e.shape[2])], dim=1)  # (B, T, E)
    if mask is not None:
        leads_on = torch.arange(n, device=z.device) < last_view(mask, z)[:, None]
        slots = torch.where(leads_on[..., None], slots, 0)
    return torch.cat([z, slots], dim=-1)


def step_of(sequence: Float[Tensor, "B T *rest"], index: Int[Tensor, "B"] | None) -> Float[Tensor, "B *rest"]:
    """One step of each row: the last, or the one at `index`."""
    if index is None:
        return sequence[:, -1]
    return sequence[torch.arange(sequence.shape[0], device=sequence.device), index]
