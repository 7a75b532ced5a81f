"""Measures that need no labels and no probe: how many directions a representation uses, and how evenly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import unwrap
from seqjepa.evaluation._inputs import check_features, check_rows, check_same_device
from seqjepa.evaluation._statistics import plain_arithmetic

__all__ = ["batch_norm_drift", "feature_deviation", "lidar", "mean_pairwise_cosine", "rankme", "target_gap"]

CHUNK = 8192  # rows that are in float64 at once


def rankme(features: Float[Tensor, "N D"], *, eps: float = 1e-7) -> float:
    """RankMe: the effective rank of the features, a soft count of the directions they use.

    `exp(−Σ_k p_k log p_k)`, `p_k = σ_k / ‖σ‖₁ + eps`, over the singular values σ of the features, not centred. From 1
    (all on one line, constant features included) to min(N, D) (all directions alike). It does not change when features
    are turned or scaled.

    The singular values come from the smaller of XᵀX and XXᵀ, in float64.

    Args:
        features: (N, D). N bounds the rank too: take several times D rows, and compare only at equal N.
        eps: keeps the logarithm finite.

    Returns:
        The effective rank; 1 for features that are all zero.

    Raises:
        ValueError: another rank of tensor, NaN or infinity.
        TypeError: not floating point.

    Source:
        Garrido et al. 2023 (arXiv 2210.02885), equations 1 and 2.

    Examples:
        >>> import torch
        >>> round(rankme(torch.eye(8)), 2), round(rankme(torch.ones(100, 8)), 2)
        (8.0, 1.0)
    """
    x = check_features("features", features)
    with plain_arithmetic(x.device):
        return rank_of(gram_spectrum(x), eps).item()


def lidar(features: Float[Tensor, "N V D"], *, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """LiDAR: the effective rank of what tells sources apart, relative to how much their views differ.

    `exp(−Σ_k p_k log p_k)`, `p_k = λ_k / ‖λ‖₁ + eps`, over the eigenvalues λ of `Σ_w^−½ Σ_b Σ_w^−½`, where Σ_b is the
    covariance of the sources' means, and Σ_w = mean over views of (x − source mean)(x − source mean)ᵀ, plus
    delta · I. From 1 to min(D, N − 1). Turning the features changes nothing; scaling them does nothing as long as the
    views differ by much more than √delta in every direction.

    A representation can have a high RankMe from noise, or from the pose alone; this measure sees that every direction
    is as far spread within a source as between sources.

    Args:
        features: (N, V, D), V ≥ 2 views of each of N sources. With few views Σ_w is noisy: the paper takes 10 or
            more of 1,000 sources.
        delta: added to the diagonal of Σ_w.
        eps: keeps the logarithm finite.

    Returns:
        The effective rank; 1 where the sources' means are all equal.

    Raises:
        ValueError: another rank of tensor; fewer than two sources or views; NaN or infinity; a delta that is not
            above 0.
        TypeError: not floating point.

    Source:
        Thilak et al. 2024 (arXiv 2312.04000), with its delta.

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> sources = torch.randn(500, 1, 8, generator=generator)
        >>> lidar(sources + 0.1 * torch.randn(500, 10, 8, generator=generator)) > 7.5
        True
    """
    x = check_features("features", features, "N V D")
    if x.shape[0] < 2 or x.shape[1] < 2:
        raise ValueError(
            f"LiDAR compares sources and the views of each, two at least; got {x.shape[0]} sources of {x.shape[1]} "
            "views."
        )
    if not delta > 0:
        raise ValueError(f"delta must be above 0, or Σ_w may not be invertible; got {delta}.")
    with plain_arithmetic(x.device):
        return rank_of(discriminant_spectrum(x, delta), eps).item()


def feature_deviation(features: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
    """The deviation of each feature over the rows, in units of the features' overall size.

    `std_n x_nd / √(mean_nd x²)`. Its mean square over the features is at most 1, which centred features have. 0 is a
    feature that never changes. The scale of all features together cancels, since a cosine loss leaves it free.

    Args:
        features: (N, D).

    Returns:
        (D,) at least 0; all 0 for features that are all zero.

    Raises:
        ValueError: another rank of tensor, NaN or infinity.
        TypeError: not floating point.

    Source:
        After Chen & He 2021 (SimSiam, arXiv 2011.10566), figure 2, who divide each row by its length instead.

    Examples:
        >>> import torch
        >>> feature_deviation(torch.tensor([[2.0, 1.0], [2.0, -1.0]])).round(decimals=2)
        tensor([0.0000, 0.6300])
    """
    x = check_features("features", features)
    with plain_arithmetic(x.device):
        return relative_deviation(x.double()).to(x.dtype)


def mean_pairwise_cosine(features: Float[Tensor, "N D"]) -> float:
    """The mean cosine between two different rows.

    `Σ_{i≠j} ⟨u_i, u_j⟩ / (N (N − 1))` with u = x/‖x‖, from one sum over the rows. In [−1/(N−1), 1]: 0 for directions
    spread evenly, 1 when all rows point one way. Positive features, such as those after a ReLU and average
    pooling, have 0.5–0.8 without being collapsed.

    Args:
        features: (N, D), N ≥ 2.

    Returns:
        The mean cosine.

    Raises:
        ValueError: another rank of tensor, a single row, NaN or infinity.
        TypeError: not floating point.

    Examples:
        >>> import torch
        >>> mean_pairwise_cosine(torch.eye(5)), mean_pairwise_cosine(torch.ones(3, 2))
        (0.0, 1.0)
    """
    x = check_features("features", features)
    _check_two(len(x))
    with plain_arithmetic(x.device):
        u = F.normalize(x.double(), dim=1)
        return round(cross_cosine(u, u).item(), 12)  # the last digits are rounding


def target_gap(prediction: Float[Tensor, "N D"], target: Float[Tensor, "N D"]) -> float:
    """How much nearer predictions are to their own targets than to those of other rows.

    `mean_i cos(p_i, t_i) − mean_{i≠j} cos(p_i, t_j)`, over all pairs: the exact mean over shuffled targets, nothing
    drawn. In [−2, 2]. 0: a prediction knows nothing of its row, however low the loss. A collapsed encoder has loss 0
    and gap 0.

    Args:
        prediction: (N, D), N ≥ 2.
        target: (N, D).

    Returns:
        The gap; in the units of the cosine loss.

    Raises:
        ValueError: shapes or devices that differ, a single row, NaN or infinity.
        TypeError: not floating point.

    Examples:
        >>> import torch
        >>> target_gap(torch.eye(4), torch.eye(4)), target_gap(torch.ones(4, 2), torch.ones(4, 2))
        (1.0, 0.0)
    """
    p, t = check_features("prediction", prediction), check_features("target", target)
    check_rows(prediction=p, target=t)
    check_same_device(prediction=p, target=t)
    if p.shape != t.shape:
        raise ValueError(f"Prediction and target must have one width; got {p.shape[1]} and {t.shape[1]}.")
    _check_two(len(p))
    with plain_arithmetic(p.device):
        return round(gap_of(p, t)[0].item(), 12)


def batch_norm_drift(encoder: nn.Module, target: nn.Module) -> float:
    """How far the running batch-norm statistics of the target encoder are from the encoder's, in deviations.

    `√ mean_c [(μ_t − μ_o)² + (σ_t − σ_o)²] / σ_o²` over all channels c of all batch norms, σ² = running variance + eps:
    the 2-Wasserstein distance of the two normal distributions, relative to the encoder's. At least 0. Up to a few
    tenths is the lag of an average; 1 means that features arrive a whole deviation from where the encoder has them.

    Args:
        encoder: the online encoder.
        target: the target encoder, or a target module that holds it.

    Returns:
        The drift.

    Raises:
        ValueError: no running statistics; batch norms of other number or width.

    Examples:
        >>> import copy, torch
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> target = copy.deepcopy(encoder)
        >>> target[1].running_mean += 1.0
        >>> round(batch_norm_drift(encoder, target), 3)
        1.0
    """
    return drift_of(encoder, target).item()


def gram_spectrum(x: Float[Tensor, "N D"]) -> Float[Tensor, "K"]:
    """Singular values, from the smaller Gram matrix, in float64."""
    if len(x) < x.shape[1]:
        gram = x.double() @ x.double().mT
    else:
        gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        for some in x.split(CHUNK):
            gram.addmm_(some.double().mT, some.double())
    squares = torch.linalg.eigvalsh(gram)
    return torch.where(squares > 1e-14 * squares[-1], squares, 0).sqrt()  # what is below is rounding


def discriminant_spectrum(x: Float[Tensor, "N V D"], delta: float) -> Float[Tensor, "K"]:
    """Eigenvalues of Σ_w^−½ Σ_b Σ_w^−½, which are those of L⁻¹ Σ_b L⁻ᵀ with Σ_w = L Lᵀ."""
    noise, (sources, views, width) = 8 * torch.finfo(x.dtype).eps, x.shape
    means = torch.empty(sources, width, dtype=torch.float64, device=x.device)
    sigma_w = delta * torch.eye(width, dtype=torch.float64, device=x.device)
    power = torch.zeros((), dtype=torch.float64, device=x.device)
    size = max(1, CHUNK // views)
    for some, mean in zip(x.split(size), means.split(size), strict=True):  # a few sources at a time: x is the large one
        within = some.double()
        power += within.square().sum() / sources / views  # the mean square length of a row
        mean.copy_(within.mean(1))
        within = (within - mean[:, None]).flatten(0, 1)
        sigma_w.addmm_(within.mT, within, alpha=1 / sources / views)
    between = (means - means.mean(0)) / sources**0.5
    between = torch.where(between.square().sum() > noise**2 * power, between, 0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(sigma_w), between.mT, upper=False)
    return gram_spectrum(whitened).square()


def rank_of(spectrum: Float[Tensor, "K"], eps: float) -> Float[Tensor, ""]:
    """The exponential of the entropy of a spectrum; 1 where it is all zero."""
    total = spectrum.sum()
    p = spectrum / total.clamp(min=torch.finfo(spectrum.dtype).tiny) + eps
    return torch.where(total > 0, torch.exp(-(p * p.log()).sum()), 1.0)


def relative_deviation(x: Float[Tensor, "N D"]) -> Float[Tensor, "D"]:
    """Deviation of each feature over the root mean square of all."""
    size = x.square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    return x.std(0, correction=0) / size


def cross_cosine(u: Float[Tensor, "N D"], v: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Mean product of rows i ≠ j, from two sums."""
    n = len(u)
    return (u.sum(0) @ v.sum(0) - (u * v).sum()) / (n * (n - 1))


def gap_of(prediction: Float[Tensor, "N D"], target: Float[Tensor, "N D"]) -> Float[Tensor, "2"]:
    """Cosine with the own target less that with the others, and the standard error of that over draws of the rows."""
    u, v = F.normalize(prediction.double(), dim=1), F.normalize(target.double(), dim=1)
    own, n = (u * v).sum(1), len(u)
    gap = own.mean() - cross_cosine(u, v)
    # What a row adds, as a prediction and as a target: the influence of a mean over pairs.
    influence = own - (u @ v.sum(0) - own) / (n - 1) - (v @ u.sum(0) - own) / (n - 1)
    return torch.stack([gap, influence.std() / n**0.5])


def drift_of(encoder: nn.Module, target: nn.Module) -> Float[Tensor, ""]:
    """The drift as a tensor: nothing waits for the device."""
    pairs = list(zip(_statistics(encoder), _statistics(target), strict=False))
    ours, theirs = len(_statistics(encoder)), len(_statistics(target))
    if not pairs or ours != theirs or any(o[0].shape != t[0].shape for o, t in pairs):
        raise ValueError(
            "The drift compares the batch norms of two encoders of one architecture, with running statistics; got "
            f"{ours} and {theirs} batch norms. For encoders without batch norm leave it out."
        )
    squares = []
    for (mean_o, std_o), (mean_t, std_t) in pairs:
        squares.append(((mean_t.to(mean_o) - mean_o).square() + (std_t.to(std_o) - std_o).square()) / std_o.square())
    return torch.cat(squares).mean().sqrt()


def has_statistics(module: nn.Module) -> bool:
    """Whether it holds a batch norm with running statistics."""
    return bool(_statistics(module))


def _statistics(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Running mean and deviation of every batch norm, in order."""
    found = []
    for layer in unwrap(module).modules():
        part: Any = layer
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            found.append((part.running_mean.double(), (part.running_var.double() + part.eps).sqrt()))
    return found


def _check_two(rows: int) -> None:
    if rows < 2:
        raise ValueError(f"Comparing rows needs two at least; got {rows}.")
