"""What a scorecard holds: its table and its figure read it, and know nothing of how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from seqjepa.evaluation._fits import TransformationFit
from seqjepa.evaluation.accuracy import Top1
from seqjepa.evaluation.composition import CompositionError
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.invariance import Invariance
from seqjepa.evaluation.retrieval import PredictionRetrievalError, Retrieval
from seqjepa.evaluation.shuffles import Sensitivity
from seqjepa.evaluation.transformations import TransformationR2

__all__ = ["Results"]


@dataclass(frozen=True, eq=False)
class Results:
    """The fields of a [`Scorecard`][seqjepa.evaluation.Scorecard], which says what each is."""

    top1: Top1 | None
    transformations: TransformationR2 | None
    from_states: Mapping[int, TransformationR2]
    paths: Mapping[str, Mapping[int, TransformationFit]]
    retrieval: Retrieval | None
    pre: PredictionRetrievalError | None
    sensitivity: Sensitivity | None
    composition: CompositionError | None
    out_of_distribution: TransformationR2 | None
    collapse: Mapping[str, Mapping[str, float]]
    skipped: Mapping[str, str]
    settings: Mapping[str, Any]
    train: Features = field(repr=False)
    test: Features = field(repr=False)
    states: Tensor | None = field(repr=False, default=None)
    invariance: Mapping[str, Invariance] = field(default_factory=dict)
    untrained: Results | None = field(repr=False, default=None)
