"""Regression by nearest neighbours: what is close in a representation, with nothing fitted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._inputs import check_sources, regression_inputs
from seqjepa.evaluation._scores import Regression, scored
from seqjepa.evaluation._statistics import Standardizer, plain_arithmetic

__all__ = ["knn_r2"]

CHUNK = 2**24  # similarities in memory at once


def knn_r2(
    train_x: Float[Tensor, "N D"],
    train_y: Float[Tensor, "N *K"],
    test_x: Float[Tensor, "M D"],
    test_y: Float[Tensor, "M *K"],
    *,
    k: int = 20,
    test_sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> Regression:
    """R² of the mean of the targets of the k most similar training rows, by cosine: a regression that fits nothing.

    An MLP reads what is there at any amplitude. Neighbours tell what the representation is *sorted* by.

    Args:
        train_x: (N, D).
        train_y: (N, K) or (N,).
        test_x: (M, D).
        test_y: (M, K) or (M,).
        k: neighbours, 1 … N.
        test_sources: (M,) integers; the interval is then over sources.
        seed: of the bootstrap.

    Returns:
        [`Regression`][seqjepa.evaluation.Regression].

    Raises:
        ValueError: as for [`regression_r2`][seqjepa.evaluation.regression_r2]; k outside 1 … N.

    Examples:
        >>> import torch
        >>> angle = torch.linspace(0, 6.2, 400)
        >>> x, y = torch.stack([angle.cos(), angle.sin()], dim=1), torch.stack([angle.cos(), (2 * angle).sin()], dim=1)
        >>> knn_r2(x[::2], y[::2], x[1::2], y[1::2], k=4).mean > 0.99
        True
    """
    train, targets, test, actual = regression_inputs(train_x, train_y, test_x, test_y)
    of_test = check_sources("test_sources", test_sources, len(test))
    if not 1 <= k <= len(train):
        raise ValueError(f"k counts neighbours among the {len(train)} training rows, 1 … {len(train)}; got {k}.")
    with plain_arithmetic(train.device):
        near, center = F.normalize(train, dim=1), Standardizer(targets)
        predicted = torch.cat([
            targets[(queries @ near.mT).topk(k, dim=1).indices].mean(dim=1)
            for queries in F.normalize(test, dim=1).split(max(1, CHUNK // len(train)))
        ])  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        return scored(center, actual, predicted.to(actual.dtype), of_test, generator, shape=test_y.shape)
