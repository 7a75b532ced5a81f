"""Regressions of the actions of a group, output by output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._coordinates import (
    coordinate_names,
    coordinates,
    leading_parts,
    rotation_columns,
    varying,
)
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.regression import Regression, regression_r2, rotation_error
from seqjepa.groups import Group

__all__ = ["HIDDEN", "Rows", "TransformationFit", "degrees_of", "group_of", "output_names", "regress"]

HIDDEN = (256, 256)


@dataclass(frozen=True, eq=False)
class TransformationFit(Regression):
    """A [`Regression`][seqjepa.evaluation.Regression] of an action or of parameters, whose outputs have names.

    A part of the action that never varies, in training or in the test, has no R². It is left out of every number here
    but `predictions`, which hold its mean in training.

    Attributes:
        outputs: what each number of `per_output` is of, such as "rotation x" or "hue cos".
        left_out: the outputs that never vary.
    """

    outputs: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs of a regression, the action each row is asked for, and the source it belongs to."""

    x: Float[Tensor, "N D"]
    action: Float[Tensor, "N A"]
    source: Int[Tensor, "N"]


def group_of(features: Features) -> Group:
    """The group of the actions, or an error that asks for it."""
    if features.group is None:
        features.from_first()  # raises
    assert features.group is not None
    return features.group


def output_names(group: Group) -> tuple[str, ...]:
    """What each output of a regression on the group's actions is of."""
    return tuple(name or "action" for name in coordinate_names(group))


def regress(group: Group, rows: Sequence[Rows], hidden: Sequence[int], seed: int) -> TransformationFit:
    """Regress the coordinates of actions, those that vary, from rows to fit to and rows to score."""
    fit, score = rows
    targets, actual = coordinates(group, fit.action), coordinates(group, score.action)
    varies, names = varying(group, fit.action) & varying(group, score.action), output_names(group)
    if not bool(varies.any()):
        raise ValueError(
            f"R² compares with the spread of the targets, and {', '.join(names)} never vary in training or in the "
            "test. Draw sequences whose actions differ."
        )
    regression = regression_r2(
        fit.x, targets[:, varies], score.x, actual[:, varies],
        hidden=hidden, train_sources=fit.source, test_sources=score.source, seed=seed,
    )  # fmt: skip
    predictions = targets.mean(dim=0).expand_as(actual).to(regression.predictions.dtype, copy=True)
    predictions[:, varies] = regression.predictions
    kept = varies.tolist()
    return TransformationFit(
        **{**vars(regression), "predictions": predictions},
        outputs=tuple(name for name, is_kept in zip(names, kept, strict=True) if is_kept),
        left_out=tuple(name for name, is_kept in zip(names, kept, strict=True) if not is_kept),
    )


def degrees_of(group: Group, regression: Regression, score: Rows) -> tuple[float | None, float | None]:
    """Mean geodesic error of the rotation of space among the actions, if there is just one, and its chance."""
    columns = rotation_columns(group)
    if columns is None:
        return None, None
    before = score.action[..., : columns.start]
    start = coordinates(leading_parts(group, columns), before).shape[-1] if columns.start else 0
    predicted = regression.predictions[:, start : start + 4]
    error = rotation_error(predicted, score.action[:, columns], sources=score.source)
    return error.mean, error.chance
