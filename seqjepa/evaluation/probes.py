"""What a frozen representation knows of classes: a linear probe and nearest neighbours, on features computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._inputs import (
    Labels,
    check_features,
    check_labels,
    check_rows,
    check_same_device,
    check_sources,
)
from seqjepa.evaluation._logistic import LogisticPath, cross_validate
from seqjepa.evaluation._statistics import (
    Interval,
    Standardizer,
    bootstrap,
    draw_folds,
    plain_arithmetic,
    sums_by_source,
)

__all__ = ["Classification", "knn_probe", "linear_probe"]

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
CHUNK = 2**24  # similarities in memory at once


@dataclass(frozen=True, eq=False)
class Classification:
    """How well a probe classifies the test rows.

    Attributes:
        accuracy: share of test rows whose class is found, in [0, 1].
        interval: 95 % bootstrap interval of the accuracy, over test rows, or test sources where they are named. It
            holds for this encoder and this training set: what another seed would give is not in it.
        chance: accuracy of always answering the most frequent class of training; 1/C where classes are balanced.
        predictions: (M,) predicted labels, on the device of the features.
        l2: the regularisation of a linear probe that was chosen, or None.

    Examples:
        >>> import torch
        >>> labels = torch.arange(90) % 3
        >>> features = torch.nn.functional.one_hot(labels).float()
        >>> result = knn_probe(features, labels, features, labels, k=5)
        >>> result.accuracy, round(result.chance, 3)
        (1.0, 0.333)
        >>> print(result)
        accuracy 1.000 [1.000, 1.000], chance 0.333
    """

    accuracy: float
    interval: Interval
    chance: float
    predictions: Int[Tensor, "M"] = field(repr=False)
    l2: float | None = None

    def __str__(self) -> str:
        """One line."""
        chosen = "" if self.l2 is None else f", l2 {self.l2:g}"
        return f"accuracy {self.accuracy:.3f} {self.interval}, chance {self.chance:.3f}{chosen}"


def linear_probe(
    train_features: Float[Tensor, "N D"],
    train_labels: Int[Tensor, "N"],
    test_features: Float[Tensor, "M D"],
    test_labels: Int[Tensor, "M"],
    *,
    l2: float | Sequence[float] = L2_GRID,
    train_sources: Int[Tensor, "N"] | None = None,
    test_sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> Classification:
    """Classify by multinomial logistic regression: how much of the class can be read off by a linear map.

    `min_W,b  mean_n CE(x_n W + b, y_n) + l2/2 ‖W‖²`, on features standardised by the training rows, solved by
    preconditioned L-BFGS. The optimum is unique. scikit-learn's `LogisticRegression(C=1 / (l2 · N))` has the same one.

    l2 is chosen by five folds of the training rows, drawn by class, and whole sources where they are named: the highest
    share of held-out rows that are classified, and among equals the strongest. From the strongest on; the weaker ones
    are not tried once every held-out row is right, or two in a row did worse than the best. The probe is that of all
    training rows. In float32 (float64 for float64 features): the problem is conditioned well enough, and the two agree
    to four digits of the objective.

    Args:
        train_features: (N, D).
        train_labels: (N,) integers, any numbers; two classes at least.
        test_features: (M, D).
        test_labels: (M,) integers, each among those of training.
        l2: one strength, or several to choose from.
        train_sources: (N,) integers, the source of each row where a source has several rows. All rows of a source are
            then in one fold, or l2 would be chosen for recognising sources.
        test_sources: (M,) integers; the interval is then over sources, whose views do not count as independent.
        seed: of the folds and the bootstrap.

    Returns:
        [`Classification`][seqjepa.evaluation.Classification], with the chosen l2.

    Raises:
        ValueError: shapes or devices that do not fit; NaN or infinity; one class; a class of the test that training
            lacks; no strength above 0; nothing to hold out.
        TypeError: labels that are no integers, features that are no floating-point numbers.

    Source:
        The linear evaluation of Ghaemi et al. 2025 (arXiv 2505.03176), solved to its optimum instead of by SGD. The
        choice is that of scikit-learn's `LogisticRegressionCV`.

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(300) % 3
        >>> centres = 4 * torch.eye(3, 8)
        >>> features = centres[labels] + torch.randn(300, 8, generator=generator)
        >>> result = linear_probe(features[:200], labels[:200], features[200:], labels[200:])
        >>> result.accuracy > 0.95
        True
    """
    train, test, labels = _inputs(train_features, train_labels, test_features, test_labels)
    grid = (float(l2),) if isinstance(l2, int | float) else tuple(map(float, l2))
    if not grid or min(grid) <= 0:
        raise ValueError(
            f"l2 must be above 0, or several such; got {l2}. Without it separable classes have no optimum."
        )
    of_train = check_sources("train_sources", train_sources, len(train))
    of_test = check_sources("test_sources", test_sources, len(test))
    generator = torch.Generator().manual_seed(seed)
    num_classes = len(labels.classes)
    with plain_arithmetic(train.device):
        standardize = Standardizer(train)
        x = standardize(train)
        if len(grid) == 1:
            fit = LogisticPath(x, labels.train, num_classes).solve(grid[0])
        else:
            folds = _folds(labels.train, of_train, generator)
            fit = cross_validate(LogisticPath(x, labels.train, num_classes, folds), grid)
        predicted = torch.addmm(fit.bias, standardize(test), fit.weight).argmax(1)
        return _classification(predicted, labels, of_test, generator, fit.l2)


def knn_probe(
    train_features: Float[Tensor, "N D"],
    train_labels: Int[Tensor, "N"],
    test_features: Float[Tensor, "M D"],
    test_labels: Int[Tensor, "M"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    test_sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> Classification:
    """Classify by the k most similar training rows: what is close in the representation, with nothing fitted.

    Each neighbour votes for its class with weight `exp(cos / temperature)`. No bias, no standardising: a large constant
    part that all features share brings every cosine near 1 and blurs the votes, as it would any use of the cosine.

    Args:
        train_features: (N, D).
        train_labels: (N,) integers.
        test_features: (M, D).
        test_labels: (M,) integers, each among those of training.
        k: neighbours, 1 … N.
        temperature: above 0.
        test_sources: (M,) integers; the interval is then over sources.
        seed: of the bootstrap.

    Returns:
        [`Classification`][seqjepa.evaluation.Classification].

    Raises:
        ValueError: as for [`linear_probe`][seqjepa.evaluation.linear_probe]; k outside 1 … N; a temperature that is
            not above 0.
        TypeError: labels that are no integers, features that are no floating-point numbers.

    Source:
        Wu et al. 2018 (arXiv 1805.01978), with k = 20 as in DINO (arXiv 2104.14294).

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> labels = torch.tensor([3, 3, 8, 8])
        >>> knn_probe(features, labels, torch.tensor([[2.0, 1.0]]), torch.tensor([3]), k=3).predictions
        tensor([3])
    """
    train, test, labels = _inputs(train_features, train_labels, test_features, test_labels)
    of_test = check_sources("test_sources", test_sources, len(test))
    if not 1 <= k <= len(train):
        raise ValueError(f"k counts neighbours among the {len(train)} training rows, 1 … {len(train)}; got {k}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}.")
    with plain_arithmetic(train.device):
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
        predicted = []
        for queries in test.split(max(1, CHUNK // len(train))):
            cosine, neighbour = (queries @ train.mT).topk(k, dim=1)
            weights = ((cosine - cosine[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
            votes = weights.new_zeros(len(queries), len(labels.classes))
            predicted.append(votes.scatter_add_(1, labels.train[neighbour], weights).argmax(1))
        return _classification(torch.cat(predicted), labels, of_test, torch.Generator().manual_seed(seed), None)


def _inputs(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, Labels]:
    """The features in one dtype, and the labels as class indices, or an error."""
    train = check_features("train_features", train_features)
    test = check_features("test_features", test_features)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"Training and test features must come from one encoder; got widths {train.shape[1]} and {test.shape[1]}."
        )
    labels = check_labels(train_labels, test_labels)
    check_rows(train_features=train, train_labels=train_labels)
    check_rows(test_features=test, test_labels=test_labels)
    check_same_device(train_features=train, train_labels=train_labels, test_features=test, test_labels=test_labels)
    return train, test.to(train.dtype), labels


def _folds(labels: Int[Tensor, "N"], sources: Int[Tensor, "N"] | None, generator: torch.Generator) -> Int[Tensor, "N"]:
    folds = draw_folds(len(labels), generator, labels=labels, sources=sources)
    if int(folds.max()) < 0:
        raise ValueError(
            "Choosing l2 holds out training rows, and no class has a row (or source) to spare. Give one l2, such as "
            "l2=1e-3, or more rows."
        )
    return folds.to(labels.device)


def _classification(
    predicted: Int[Tensor, "M"],
    labels: Labels,
    sources: Int[Tensor, "M"] | None,
    generator: torch.Generator,
    l2: float | None,
) -> Classification:
    correct = predicted == labels.test
    sums = sums_by_source(torch.stack([correct, torch.ones_like(correct)], dim=1), sources)
    most_frequent = torch.bincount(labels.train).argmax()
    return Classification(
        accuracy=correct.double().mean().item(),
        interval=bootstrap(sums, lambda s: s[:, 0] / s[:, 1], generator),
        chance=(labels.test == most_frequent).double().mean().item(),
        predictions=labels.classes[predicted],
        l2=l2,
    )
