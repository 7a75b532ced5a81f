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
    steady_coordinates,
)
from seqjepa.evaluation._regressors import Asked, Regressor, fit_regressors
from seqjepa.evaluation._scores import Regression
from seqjepa.evaluation.features import Features, same_group
from seqjepa.evaluation.rotations import rotation_error
from seqjepa.groups import Group

__all__ = [
    "HIDDEN", "ActionRegressor", "Rows", "TransformationFit", "degrees_of", "fit_actions", "group_of", "regress",
    "regress_all",
]  # fmt: skip

HIDDEN = (256, 256)


@dataclass(frozen=True, eq=False)
class TransformationFit(Regression):
    """A [`Regression`][seqjepa.evaluation.Regression] of an action or of parameters, whose outputs have names.

    Attributes:
        outputs: what each number of `per_output` is of, such as "rotation x" or "hue cos".

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract, transformation_r2
        >>> from seqjepa.groups import Hue, Product, Translation
        >>> t = torch.rand(100, 3, 2) * torch.tensor([1.0, 0.0])                      # the hue never changes
        >>> group = Product({"shift": Translation(1), "hue": Hue()})
        >>> features = extract(lambda views: views, ViewSequence(t, group.actions(t), t, group=group))
        >>> fit = transformation_r2(features, features, hidden=()).relative
        >>> fit.outputs, fit.left_out
        (('shift', 'hue cos', 'hue sin'), ('hue cos', 'hue sin'))
    """

    outputs: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The outputs that never vary, in training or in the test, by name: no R² is of them."""
        return tuple(self.outputs[i] for i in self.constant)


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs of a regression, the action each row is asked for, and the source it belongs to."""

    x: Float[Tensor, "N D"]
    action: Float[Tensor, "N A"]
    source: Int[Tensor, "N"]


def group_of(features: Features, *others: Features) -> Group:
    """The group of the actions, or an error that asks for it, or for one group of all."""
    for each in (features, *others):
        if each.group is None:
            each.from_first()  # raises
    group = features.group
    assert group is not None
    for other in others:
        if not same_group(other.group, group):
            raise ValueError(
                f"A probe is fitted and scored on actions of one group; got {group} in training and {other.group} in "
                "the test. Give both sets of sequences one group."
            )
    return group


@dataclass(frozen=True, eq=False)
class ActionRegressor:
    """A fitted regression of the coordinates of actions of a group."""

    group: Group
    regressor: Regressor

    def read(self, rows: Rows) -> TransformationFit:
        """R² on other rows."""
        regression = self.regressor.read(_asked(self.group, rows))
        return TransformationFit(**vars(regression), outputs=_names(self.group))


def fit_actions(group: Group, rows: Sequence[Rows], hidden: Sequence[int], seed: int) -> list[ActionRegressor]:
    """A regression of the coordinates of actions for each of these sets of rows; MLPs are fitted side by side."""
    regressors = fit_regressors([_asked(group, one) for one in rows], hidden=hidden, seed=seed)
    return [ActionRegressor(group, regressor) for regressor in regressors]


def regress(group: Group, rows: tuple[Rows, Rows], hidden: Sequence[int], seed: int) -> TransformationFit:
    """Regress the coordinates of actions, from rows to fit to and rows to score."""
    return regress_all(group, [rows], hidden, seed)[0]


def regress_all(
    group: Group, pairs: Sequence[tuple[Rows, Rows]], hidden: Sequence[int], seed: int
) -> list[TransformationFit]:
    """For each pair, a regression that is fitted to its first rows and read on its second."""
    fitted = fit_actions(group, [fit for fit, _ in pairs], hidden, seed)
    return [one.read(score) for one, (_, score) in zip(fitted, pairs, strict=True)]


def _asked(group: Group, rows: Rows) -> Asked:
    return Asked(rows.x, steady_coordinates(group, rows.action), rows.source)


def _names(group: Group) -> tuple[str, ...]:
    return tuple(name or "action" for name in coordinate_names(group))


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
