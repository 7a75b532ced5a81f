"""NT-Xent: one of a batch's rows is the other view of a source, all others are negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._modes import autocast
from seqjepa.distributed import all_reduce, gather, rank, world_size

__all__ = ["NTXent", "over_pairs"]


class NTXent(nn.Module):
    """Tell the other view of a source among all rows of a batch: the normalised temperature-scaled cross entropy.

    With the rows of W = [u ; v] at length 1, s = W Wᵀ / τ, and p(r) the other view of row r's source:

    `mean_r ( log Σ_{c≠r} exp s_rc − s_r,p(r) )`, over all 2N rows, at least 0.

    Rows all equal give log(2N − 1). Lengths do not matter. Computed in float32 or wider, outside autocast: at τ = 0.1 a
    cosine in bfloat16 is off by 0.02 in s.

    In training mode negatives are the rows of all ranks, where torch.distributed is in use: each rank compares its own
    rows with all, and all have the loss of the whole batch. The gradient is right once it is averaged over ranks, as
    DistributedDataParallel does; all ranks must call it. In eval mode the batch is this process's own.

    Two rows of u of one source would be each other's negatives: give one pair of each source.

    Args:
        temperature: τ, above 0.

    Shapes:
        u (N, P), v (N, P), row i of both of one source → (). N at least 2, over all ranks in training.

    Raises:
        ValueError: a temperature that is not above 0; other shapes; a single source, whose loss is 0 whatever happens.

    Source:
        Chen et al. 2020 (arXiv 2002.05709), equation 1.

    Examples:
        >>> import torch
        >>> u = torch.eye(4)                                                  # four sources at right angles
        >>> round(NTXent(temperature=0.5)(u, 3 * u).item(), 4)                # log(1 + 6 exp(−2))
        0.5944
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}.")
        self.temperature = temperature

    def forward(self, u: Float[Tensor, "N P"], v: Float[Tensor, "N P"]) -> Float[Tensor, ""]:
        """The loss of one pair of views of each source."""
        if u.ndim != 2 or u.shape != v.shape:
            raise ValueError(f"u and v must have one shape, (N, P); got {tuple(u.shape)} and {tuple(v.shape)}.")
        dtype = torch.promote_types(torch.promote_types(u.dtype, v.dtype), torch.float32)
        with autocast(u.device, enabled=False):
            rows = F.normalize(torch.stack([u.to(dtype), v.to(dtype)], dim=1), dim=-1, eps=1e-8)  # (N, 2, P)
            counts = self._counts(rows)
            if sum(counts) < 2:
                raise ValueError(
                    "A source is told from others, so it takes two of them at least; got 1, whose loss is 0 whatever "
                    "happens. Use a larger batch."
                )
            everyone = gather(rows, counts) if len(counts) > 1 else rows
            # By view, then by source: sides are not mixed, whatever rank a row comes from.
            anchors, keys = (x.transpose(0, 1).flatten(0, 1) for x in (rows, everyone))
            start = sum(counts[: rank()]) if len(counts) > 1 else 0
            own = torch.arange(start, start + len(rows), device=u.device)
            itself, other = torch.cat([own, own + len(everyone)]), torch.cat([own + len(everyone), own])
            logits = (anchors @ keys.T / self.temperature).scatter(1, itself[:, None], -torch.inf)
            total = F.cross_entropy(logits, other, reduction="sum")
            return (all_reduce(total) if len(counts) > 1 else total) / (2 * len(everyone))

    def _counts(self, rows: Tensor) -> list[int]:
        """Rows of each rank in training; an evaluation may run on one rank while the others go on."""
        if world_size() == 1 or not self.training:
            return [len(rows)]
        mine = torch.tensor([len(rows)], device=rows.device)
        return [int(count) for count in gather(mine, [1] * world_size()).tolist()]

    def extra_repr(self) -> str:
        """The temperature, for `print`."""
        return f"temperature={self.temperature}"


def over_pairs(contrast: NTXent, u: Float[Tensor, "B K P"], v: Float[Tensor, "B K P"]) -> Float[Tensor, ""]:
    """The mean over one pair of each source at a time: no source is its own negative."""
    return torch.stack([contrast(u[:, k], v[:, k]) for k in range(u.shape[1])]).mean()
