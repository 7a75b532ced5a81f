"""Everything at once: a scorecard of invariance and equivariance."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from seqjepa.evaluation.behaviour import (
    CompositionError,
    Sensitivity,
    Top1,
    action_retrieval,
    composition_error,
    prediction_retrieval_error,
    sensitivity,
    top1,
)
from seqjepa.evaluation.collapse import feature_deviation, lidar, mean_pairwise_cosine, rankme
from seqjepa.evaluation.features import Features, aggregate_states, extract
from seqjepa.evaluation.probes import Classification
from seqjepa.evaluation.regression import Regression
from seqjepa.evaluation.retrieval import PredictionRetrievalError, Retrieval
from seqjepa.evaluation.transformations import (
    HIDDEN,
    TransformationR2,
    path_integration,
    rotation_columns,
    state_transformation_r2,
    transformation_r2,
)
from seqjepa.types import ViewSequence

__all__ = ["Scorecard", "evaluate"]

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Scorecard:
    """All measures of one model; what was not measured is None or empty, and `skipped` says why.

    Attributes:
        top1: accuracy of z and of the state by M_val.
        transformations: R² of relative and individual transformations from z.
        from_states: M_val → R² of transformations from states.
        paths: variant → M_val → R² of path integration.
        retrieval: MRR and H@k of the predictor.
        pre: the prediction retrieval error, where the action is or holds one rotation of space.
        sensitivity: what moves when actions or views are shuffled.
        composition: two predicted steps against one composed step.
        out_of_distribution: R² of the transformations from z on sequences out of distribution.
        collapse: RankMe, mean pairwise cosine and mean deviation of z and of the state, and LiDAR of z.
        skipped: measure → the reason why it was not made.
        settings: how many sources and views, seeds and widths of the probes, seconds taken.
        train: features of the training sources.
        test: features of the test sources, which the figure draws.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import evaluate
        >>> labels = torch.arange(60) % 3
        >>> views = torch.randn(60, 2, 4) + 3 * labels[:, None, None]
        >>> sequence = ViewSequence(views, torch.randn(60, 1, 2), labels=labels)
        >>> card = evaluate(lambda v: v, sequence, sequence, progress=False)      # an encoder alone
        >>> card.top1.z.accuracy > 0.9, list(card.skipped)[0]
        (True, 'transformations')
    """

    top1: Top1 | None
    transformations: TransformationR2 | None
    from_states: Mapping[int, TransformationR2]
    paths: Mapping[str, Mapping[int, Regression]]
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

    def __str__(self) -> str:
        """The table."""
        lines = [
            f"{self.settings['train_sources']} training and {self.settings['test_sources']} test sources, "
            f"{self.settings['views']} views each; 95 % intervals in brackets",
            "",
            *_table(self),
        ]
        if self.skipped:
            lines += ["", "Not measured:", *(f"  {name}: {reason}" for name, reason in self.skipped.items())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain dictionaries, lists, strings and floats.

        Features and predictions of single rows are left out. A number that does not exist is None.
        """
        shown = ("train", "test", "states")
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in shown}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all numbers; the file is complete or is not there.

        Args:
            path: of the file; its folder is made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the page of pictures: curves, the accuracy–R² plane, planes of z and state, neighbours.

        Args:
            path: where to save it, such as "card.png"; its folder is made. None only returns it.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed: `pip install 'seqjepa[examples]'`.
        """
        from seqjepa.evaluation._figure import draw

        figure = draw(self)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110)
        return figure


def evaluate(
    model: Any,
    train: ViewSequence | Iterable[ViewSequence] | Features,
    test: ViewSequence | Iterable[ViewSequence] | Features,
    *,
    ood: ViewSequence | Iterable[ViewSequence] | Features | None = None,
    num_views: Sequence[int] | None = None,
    hidden: Sequence[int] = HIDDEN,
    batch_size: int = 256,
    autocast: torch.dtype | None = torch.bfloat16,
    max_sequences: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> Scorecard:
    """Measure invariance and equivariance of a model, all in one call.

    Features are extracted once, in eval mode and without gradient; every measure works on them. Each is a function of
    its own in `seqjepa.evaluation`, whose docstring defines it. What cannot be measured, for want of labels, of a
    group or of an aggregator, is left out, and the card says why.

    Args:
        model: a [`SeqJEPA`][seqjepa.SeqJEPA]; or anything with its `encode`, `embed`, `aggregate`, and for what is
            predicted `predict` and `target`; or a function (B, T, …) → (B, T, D), an encoder alone.
        train: sequences that probes are fitted to: one ViewSequence, several in turn, or `Features`. Where several
            sequences show one source, give `extract(model, sequences, sources=…)`.
        test: sequences of other sources, as long.
        ood: sequences transformed out of the range of the training ones, to read with the same probes.
        num_views: M_val of the state's accuracy; by default those of 1, 2, 3, 5, 8 below V, and V.
        hidden: widths of the hidden layers of every regression. (1024, 1024) is SIE's, and takes several times as long.
        batch_size: sources to encode at a time.
        autocast: a dtype to encode in under autocast on a GPU; None for the model's own.
        max_sequences: how many training sequences regressions from states are fitted to, the first ones; a half as many
            test sequences. States of all lengths, of blank views too, are most of the work.
        seed: of pairs, probes, shuffles and intervals.
        progress: show a progress bar, if tqdm is installed.

    Returns:
        [`Scorecard`][seqjepa.evaluation.Scorecard].

    Raises:
        ValueError: sequences that are empty, differ in length between train and test, or hold what the probes refuse:
            one class, fewer sources than classes, constant targets, NaN features.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> from seqjepa.data import RotatedViews
        >>> model, sampler = SeqJEPA.from_timm("resnet18", action_dim=1, cifar_stem=True), RotatedViews(num_views=3)
        >>> labels = torch.arange(40) % 2
        >>> train, test = (sampler(torch.rand(40, 3, 32, 32))._replace(labels=labels) for _ in range(2))
        >>> card = evaluate(model, train, test, hidden=(), progress=False)
        >>> print(card)                                                                       # doctest: +ELLIPSIS
        40 training and 40 test sources, 3 views each; ...
    """
    if max_sequences < 2:
        raise ValueError(f"max_sequences is what regressions are fitted to, at least 2; got {max_sequences}.")
    begun = time.perf_counter()
    skipped: dict[str, str] = {}
    bar = _bar(progress)

    def features(sequences: Any) -> Features:
        if isinstance(sequences, Features):
            return sequences
        return extract(model, sequences, batch_size=batch_size, autocast=autocast)

    bar("encode")
    fit, score = features(train), features(test)
    if fit.num_views != score.num_views:
        raise ValueError(
            f"Training and test sequences must be equally long; got {fit.num_views} and {score.num_views} views."
        )
    encoded = time.perf_counter()
    views, whole = score.num_views, fit.e is not None
    few, others = fit.first(max_sequences), score.first(max(2, max_sequences // 2))
    lengths = (
        tuple(sorted({m for m in (1, 2, 3, 5, 8) if m < views} | {views})) if num_views is None else tuple(num_views)
    )
    needs_model = "" if whole else "an encoder alone: give a model with embed, aggregate, predict and target"
    needs_target = needs_model or ("" if score.target is not None else "a model without target and predict")
    needs_group = "" if fit.group is not None else "the sequences do not know their group: see ViewSequence.group"

    def measure(name: str, reason: str, work: Callable[[], Result]) -> Result | None:
        bar(name)
        if reason:
            skipped[name] = reason
            return None
        return work()

    unlabelled = "" if fit.labels is not None and score.labels is not None else "the sequences have no labels"
    accuracy = measure("top1", unlabelled, lambda: top1(model, fit, score, num_views=lengths, seed=seed))
    transformations = measure(
        "transformations", needs_group, lambda: transformation_r2(fit, score, hidden=hidden, seed=seed)
    )
    pairs = [m for m in sorted({1, views // 2}) if 2 * m <= views and m]
    from_states = measure(
        "from_states",
        needs_model or needs_group,
        lambda: {m: state_transformation_r2(model, few, others, num_views=m, hidden=hidden, seed=seed) for m in pairs},
    )
    paths = measure(
        "paths", needs_model or needs_group, lambda: path_integration(model, few, others, hidden=hidden, seed=seed)
    )
    found = measure("retrieval", needs_target or needs_group, lambda: action_retrieval(model, score))
    unposed = "" if score.elements is not None and rotation_columns(score.group) else "no rotations of space are known"
    error = measure("pre", needs_target or needs_group or unposed, lambda: prediction_retrieval_error(model, score))
    moved = measure(
        "sensitivity",
        needs_target or needs_group,
        lambda: sensitivity(model, few, others, hidden=hidden, seed=seed),
    )
    short = "" if views >= 3 else f"two steps need three views; got {views}"
    composed = measure("composition", needs_target or needs_group or short, lambda: composition_error(model, score))
    none = "" if ood is not None else "no sequences out of distribution were given"
    outside = measure(
        "out_of_distribution",
        needs_group or none,
        lambda: transformation_r2(fit, features(ood), hidden=hidden, seed=seed),
    )
    state = aggregate_states(model, score, min(views, max(lengths, default=views))) if whole else None
    bar("")
    return Scorecard(
        top1=accuracy,
        transformations=transformations,
        from_states=from_states or {},
        paths=paths or {},
        retrieval=found,
        pre=error,
        sensitivity=moved,
        composition=composed,
        out_of_distribution=outside,
        collapse=_collapse(score.z, state),
        skipped=skipped,
        settings={
            "train_sources": len(fit.source_numbers.unique()),
            "test_sources": len(score.source_numbers.unique()),
            "train_sequences": len(fit.z),
            "test_sequences": len(score.z),
            "views": views,
            "hidden": list(hidden),
            "seed": seed,
            "seconds_encoding": encoded - begun,
            "seconds_measuring": time.perf_counter() - encoded,
        },
        train=fit,
        test=score,
        states=state,
    )


def _collapse(z: Tensor, state: Tensor | None) -> dict[str, dict[str, float]]:
    """Effective ranks, mean cosines and mean deviations, for z and the state apart."""
    representations = {"z": z[:, 0]} if state is None else {"z": z[:, 0], "state": state}
    measures = {
        name: {
            "rankme": rankme(x),
            "mean_cosine": mean_pairwise_cosine(x),
            "deviation": feature_deviation(x).mean().item(),
            "dim": float(x.shape[1]),
        }
        for name, x in representations.items()
    }
    if z.shape[1] > 1:
        measures["z"]["lidar"] = lidar(z)
    return measures


def _bar(progress: bool) -> Callable[[str], None]:
    """Called with what is measured next; with "" at the end."""
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:
            return lambda name: None  # no bar without it
        bar = tqdm(total=10, desc="encode", unit="measure")

        def advance(name: str) -> None:
            if name:
                bar.set_description(name)
                bar.update(name != "encode")
            else:
                bar.update()
                bar.close()

        return advance
    return lambda name: None


def _table(card: Scorecard) -> list[str]:
    rows: list[tuple[str, str, str]] = [("", "", "chance")]

    def r2(name: str, fit: Regression | None, degrees: float | None = None, by_chance: float | None = None) -> None:
        if fit is not None:
            angle = "" if degrees is None else f"  {degrees:.1f}°"
            chance = f"{fit.chance:.3f}, pooled {fit.pooled_chance:.3f}"
            chance += "" if by_chance is None else f", {by_chance:.1f}°"
            rows.append((name, f"{fit.mean:.3f} {fit.interval}  pooled {fit.pooled:.3f}{angle}", chance))

    def percent(name: str, fit: Classification) -> None:
        value = f"{100 * fit.accuracy:.1f} % [{100 * fit.interval.low:.1f}, {100 * fit.interval.high:.1f}]"
        rows.append((name, value, f"{100 * fit.chance:.1f} %"))

    if card.top1 is not None:
        percent("top-1, z", card.top1.z)
        for m, fit in card.top1.states.items():
            percent(f"top-1, state of {m}", fit)
        for name, fit in card.top1.knn.items():
            percent(f"top-1 of 20 neighbours, {name}", fit)
    if card.transformations is not None:
        t = card.transformations
        r2("R² relative, z pairs", t.relative, t.relative_degrees, t.chance_degrees)
        r2("R² individual, z", t.individual, t.individual_degrees)
    for m, t in card.from_states.items():
        r2(f"R² relative, states of {m}", t.relative, t.relative_degrees, t.chance_degrees)
        r2(f"R² relative, states of {m} blank views", t.blank)
        r2(f"R² individual, state of {m}", t.individual, t.individual_degrees)
    if card.out_of_distribution is not None:
        t = card.out_of_distribution
        r2("R² relative, z, out of distribution", t.relative, t.relative_degrees, t.chance_degrees)
    for variant, curve in card.paths.items():
        values = "  ".join(f"{m}: {fit.mean:.2f}" for m, fit in curve.items())
        if values:
            rows.append((f"R² path, {variant}", values, "0"))
    if card.retrieval is not None:
        r = card.retrieval
        hits = "  ".join(f"H@{k} {value:.3f}" for k, value in r.hits.items())
        rows.append(("retrieval by action, MRR", f"{r.mrr:.3f} {r.interval}  {hits}", f"{r.chance.mrr:.3f}"))
    if card.pre is not None:
        rows.append(("retrieval by action, PRE", f"{card.pre.error:.3f} {card.pre.interval}", f"{card.pre.chance:.3f}"))
    if card.composition is not None:
        c = card.composition
        rows.append(("two steps against one composed", f"{c.distance:.3f}", f"{c.chance:.3f}"))
    if card.sensitivity is not None:
        for name, values_of in (
            ("loss", card.sensitivity.loss),
            ("top-1", card.sensitivity.top1),
            ("path R²", card.sensitivity.path_r2),
        ):
            for condition, value in values_of.items():
                rows.append((f"{name}, {condition}", f"{value:.3f}", ""))
    for name, values_by in card.collapse.items():
        rows.append((f"RankMe, {name}", f"{values_by['rankme']:.1f} of {values_by['dim']:.0f}", ""))
        rows.append((f"mean cosine, {name}", f"{values_by['mean_cosine']:.2f}", ""))
    left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"{name:<{left}}  {value:<{middle}}  {chance}".rstrip() for name, value, chance in rows]


def _plain(value: Any) -> Any:
    """Results as JSON knows them; tensors of single rows are left out."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not isinstance(getattr(value, f.name), Tensor)
        }
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | bool | type(None)) else str(value)
