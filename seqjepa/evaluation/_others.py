"""What belongs to other sources: for shuffles, and for the chance that goes with a distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["distance_to_others", "of_other_sources"]


def of_other_sources(sources: Int[Tensor, "N"], generator: torch.Generator) -> Int[Tensor, "N"]:
    """For each row a row of another source, drawn uniformly; there must be two sources at least."""
    _, inverse, counts = sources.cpu().unique(return_inverse=True, return_counts=True)
    together = inverse.argsort(stable=True)  # rows, those of a source side by side
    own, begins = counts[inverse], (counts.cumsum(0) - counts)[inverse]
    share = torch.rand(len(inverse), generator=generator, dtype=torch.float64, device="cpu")
    drawn = (share * (len(inverse) - own)).long()
    return together[torch.where(drawn < begins, drawn, drawn + own)].to(sources.device)


def distance_to_others(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], sources: Int[Tensor, "N"]) -> float:
    """The mean cosine distance between rows of `a` and rows of `b` of other sources, exact over all pairs."""
    a, b = (F.normalize(x.double(), dim=1, eps=1e-8) for x in (a, b))
    _, inverse, counts = sources.unique(return_inverse=True, return_counts=True)
    of_source = b.new_zeros(len(counts), b.shape[1]).index_add_(0, inverse, b)
    others = (b.sum(dim=0) - of_source[inverse]) / (len(b) - counts[inverse])[:, None]
    return 1 - (a * others).sum(dim=1).mean().item()
