"""How long what is imagined still shows where it has gone: the pose read off of imagined and of encoded views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._coordinates import canonical
from seqjepa.evaluation._fits import HIDDEN, Rows, TransformationFit, group_of, regress_all
from seqjepa.evaluation._frozen import call, unwrapped
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.states import blank_views

__all__ = ["Retention", "retention"]


@dataclass(frozen=True, eq=False)
class Retention:
    """R² of the pose after each of K actions, from what was imagined, and from what it is to be measured by.

    Each maps k, from 1 to K, to a fit.

    Attributes:
        imagined: from ẑ_T+k, imagined from T views and the actions since.
        encoded: from z_T+k, of the view itself: what there is to be retained.
        blank: from what is imagined where every observed view is blank: what the actions alone tell.
        last: from z_T, of the last view seen: what is known without imagining.

    Examples:
        >>> from types import SimpleNamespace
        >>> fits = {name: {1: SimpleNamespace(mean=r2)} for name, r2 in
        ...         {"imagined": 0.4, "encoded": 0.8, "blank": 0.3, "last": 0.0}.items()}
        >>> Retention(**fits).curve
        {1: 0.5}
    """

    imagined: dict[int, TransformationFit]
    encoded: dict[int, TransformationFit]
    blank: dict[int, TransformationFit]
    last: dict[int, TransformationFit]

    @property
    def curve(self) -> dict[int, float]:
        """K → R² from the imagined view over R² from the encoded one; NaN where that is not above 0."""
        ratios = {k: (fit.mean, self.encoded[k].mean) for k, fit in self.imagined.items()}
        return {k: ours / whole if whole > 0 else float("nan") for k, (ours, whole) in ratios.items()}


def retention(
    model: Any,
    train: Features,
    test: Features,
    *,
    observed: int = 3,
    horizon: int = 5,
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
) -> Retention:
    """How much of the pose is left in what a model imagines 1 … K steps ahead, each prediction fed back as a view.

    A probe is fitted anew for each k and each input, so its R² says what that input holds, not whether it is held as in
    z. Two levels stand beside: actions are no secret to what is imagined, and with poses of a bounded range they tell
    much of where they lead (`blank`); and what is imagined must beat the view that was last seen (`last`). The third is
    an untrained model, which you measure alike.

    Horizons that were not trained say most: a model is good at its own.

    Args:
        model: anything with `imagine_from`, as [`SeqJEPA`][seqjepa.SeqJEPA] has it.
        train: features of the training sources, with a group and absolute parameters.
        test: features of other sources.
        observed: T, the views to begin with.
        horizon: K; the sequences have T + K views at least.
        hidden: widths of the MLPs' hidden layers; () is linear.
        seed: of the regressions.

    Returns:
        [`Retention`][seqjepa.evaluation.Retention].

    Raises:
        ValueError: fewer views than are observed and imagined; no group, no absolute parameters, or the features of an
            encoder alone.
        TypeError: a model that does not imagine.

    Source:
        A blind roll-out is judged by what a probe loses in arXiv 2605.25313 (UWM-JEPA); the levels are ours.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> t = torch.randn(60, 4, 2)
        >>> sequence = ViewSequence(torch.rand(60, 4, 3, 32, 32), t.diff(dim=1), t, group=Translation(2))
        >>> features = extract(model, sequence)
        >>> found = retention(model, features, features, observed=2, horizon=2, hidden=())
        >>> list(found.curve), list(found.last)
        ([1, 2], [1, 2])
    """
    group = group_of(train, test)
    if observed < 1 or horizon < 1:
        raise ValueError(f"observed and horizon must be at least 1; got {observed} and {horizon}.")
    if not hasattr(unwrapped(model), "imagine_from"):
        raise TypeError(f"Only a model that imagines can be asked; {type(unwrapped(model)).__name__} does not.")
    for features in (train, test):
        if features.num_views < observed + horizon:
            raise ValueError(
                f"{observed} observed views and {horizon} steps ahead take {observed + horizon} views; got "
                f"{features.num_views}. Make longer sequences, or ask for fewer steps."
            )
        if features.elements is None:
            raise ValueError(
                "The pose of a view is its absolute parameters, which these features lack. Give the ViewSequence its "
                "parameters and its group."
            )
        if features.e is None:
            raise ValueError("Imagining needs a model with embed; these are the features of an encoder alone.")

    kinds = ("imagined", "encoded", "blank", "last")
    given = {features: _inputs(model, features, train, observed, horizon) for features in {train, test}}
    pairs = [
        (_rows(given[train][kind], train, observed, k), _rows(given[test][kind], test, observed, k))
        for kind in kinds
        for k in range(1, horizon + 1)
    ]
    fits = iter(regress_all(group, pairs, hidden, seed))
    return Retention(**{kind: {k: next(fits) for k in range(1, horizon + 1)} for kind in kinds})


def _inputs(model: Any, features: Features, train: Features, observed: int, horizon: int) -> dict[str, Tensor]:
    """What the probes read, (N, K, D) of each kind."""
    assert features.e is not None
    seen, ahead = slice(observed), slice(observed - 1, observed - 1 + horizon)
    e, actions = features.e[:, : observed - 1], features.actions[:, ahead]

    def imagined(z: Float[Tensor, "N V D"]) -> Float[Tensor, "N K D"]:
        return call(model, "imagine_from", z[:, seen], e, actions)

    return {
        "imagined": imagined(features.z),
        "encoded": features.z[:, observed : observed + horizon],
        "blank": imagined(blank_views(features, train)),
        "last": features.z[:, observed - 1 : observed].expand(-1, horizon, -1),
    }


def _rows(x: Float[Tensor, "N K D"], features: Features, observed: int, k: int) -> Rows:
    assert features.elements is not None
    assert features.group is not None
    pose = canonical(features.group, features.elements[:, observed - 1 + k])
    return Rows(x[:, k - 1], pose, features.source_numbers)
