"""Checks on cached features and labels. They read the values: a measure runs once, not at each step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa._checks import check_floating, check_tensor

__all__ = [
    "Labels", "check_classes", "check_features", "check_integers", "check_labels", "check_rows", "check_same_device",
    "check_sources", "regression_inputs", "regression_rows",
]  # fmt: skip


def check_features(name: str, features: Tensor, axes: str = "N D") -> Float[Tensor, "..."]:
    """The features, detached and in float32 or wider; an error unless they have these axes, none empty, all finite."""
    check_tensor(name, features)
    letters = axes.split()
    if features.ndim != len(letters):
        raise ValueError(
            f"{name} must have the axes ({', '.join(letters)}); got shape {tuple(features.shape)}. "
            "Flatten or index the others first."
        )
    check_floating(name, features)
    if 0 in features.shape:
        raise ValueError(f"{name} must hold something on every axis; got shape {tuple(features.shape)}.")
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} must be finite; {len(bad)} of {len(finite)} rows hold NaN or infinity, at {bad[:5]}"
            f"{' …' if len(bad) > 5 else ''}. Look at the encoder, or drop the rows."
        )
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise unless all lie on one device."""
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise ValueError(f"All inputs must lie on one device; got {where}. Move them with .to().")


def check_rows(**tensors: Tensor | None) -> None:
    """Raise unless all have one number of rows."""
    given = {name: len(tensor) for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        counts = ", ".join(f"{rows} rows of {name}" for name, rows in given.items())
        raise ValueError(f"Row i of each must belong to the same view; got {counts}.")


def check_integers(name: str, values: Tensor, what: str) -> Int[Tensor, "N"]:
    """The values as int64; an error unless they are (N,) and integers."""
    check_tensor(name, values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be {what}, with the axis (N); got shape {tuple(values.shape)}.")
    if values.is_floating_point() or values.is_complex():
        raise TypeError(
            f"{name} must be {what}, as integers; got {values.dtype}. Convert class numbers with {name}.long(); for "
            "numbers to be regressed use regression_r2."
        )
    return values.long()


def check_sources(name: str, sources: Tensor | None, rows: int) -> Int[Tensor, "N"] | None:
    """The sources numbered 0 … U−1, or None where none are given."""
    if sources is None:
        return None
    values = check_integers(name, sources, "the source of each row")
    if len(values) != rows:
        raise ValueError(f"{name} must name the source of each of the {rows} rows; got {len(values)}.")
    return torch.unique(values, return_inverse=True)[1]


class Labels(NamedTuple):
    """Labels as class indices 0 … C−1, and the labels that the indices stand for."""

    train: Int[Tensor, "N"]
    test: Int[Tensor, "M"]
    classes: Int[Tensor, "C"]


def check_labels(train_labels: Tensor, test_labels: Tensor) -> Labels:
    """Number the classes of training; an error where a probe cannot learn to tell the test's classes apart."""
    train = check_integers("train_labels", train_labels, "the class of each row")
    test = check_integers("test_labels", test_labels, "the class of each row")
    classes, indices = torch.unique(train, return_inverse=True)
    everything = torch.unique(torch.cat([train, test]))
    if len(everything) == 1:
        raise ValueError(
            f"A classifier needs two classes at least; all labels are {int(classes[0])}, and any answer would be right."
        )
    check_classes(train, test)
    return Labels(indices, torch.searchsorted(classes, test), classes)


def check_classes(train_labels: Int[Tensor, "N"], test_labels: Int[Tensor, "M"]) -> None:
    """Raise where the test holds a class that training lacks."""
    unseen = test_labels.unique()
    unseen = unseen[~torch.isin(unseen, train_labels)].tolist()
    if unseen:
        raise ValueError(
            f"Each class of the test set must occur in training; {len(unseen)} do not: {unseen[:8]}"
            f"{' …' if len(unseen) > 8 else ''}. Draw training rows of them, or leave them out of the test."
        )


def regression_inputs(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features in one dtype and (N, K) targets, or an error."""
    train, targets = regression_rows("train", train_x, train_y)
    test, actual = regression_rows("test", test_x, test_y)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"Training and test features must come from one encoder; got widths {train.shape[1]} and {test.shape[1]}."
        )
    if targets.shape[1] != actual.shape[1]:
        raise ValueError(
            f"Training and test targets must have one number of outputs; got {targets.shape[1]} and {actual.shape[1]}."
        )
    check_same_device(train_x=train, train_y=targets, test_x=test, test_y=actual)
    return train, targets, test.to(train.dtype), actual


def regression_rows(name: str, x: Tensor, y: Tensor) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N K"]]:
    """Features, and targets with an axis of outputs, or an error that calls them by the name of their set."""
    features = check_features(f"{name}_x", x)
    targets = check_features(f"{name}_y", y[:, None] if isinstance(y, Tensor) and y.ndim == 1 else y, "N K")
    check_rows(**{f"{name}_x": features, f"{name}_y": targets})
    check_same_device(**{f"{name}_x": features, f"{name}_y": targets})
    return features, targets
