"""Everything at once: a scorecard of invariance and equivariance."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqjepa.evaluation._figure import draw
from seqjepa.evaluation._fits import HIDDEN
from seqjepa.evaluation._frozen import unwrapped
from seqjepa.evaluation._inputs import check_classes, check_integers, check_rows
from seqjepa.evaluation._loaders import check_given, known_sequences
from seqjepa.evaluation._measuring import MEASURES, Measuring
from seqjepa.evaluation._results import Results
from seqjepa.evaluation._table import table, won_by_untrained
from seqjepa.evaluation._untrained import Beside, made
from seqjepa.evaluation.features import Features
from seqjepa.types import ViewSequence

__all__ = ["Scorecard", "evaluate"]


@dataclass(frozen=True, eq=False)
class Scorecard(Results):
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
        skipped: measure, or the part of one → the reason why it was not made, an error's words among them.
        settings: how many sources, sequences and views, seeds and widths of the probes, seconds taken.
        train: features of the training sources.
        test: features of the test sources, which the figure draws.
        states: (N, S) of the test sequences, at the longest of `num_views`; None of an encoder alone.
        invariance: "z", "state of M" and others → R² of the pose at equal rows, class among neighbours, and the share
            of variance between objects.
        untrained: the card of the untrained model, or None; what exact actions tell is not measured again.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import evaluate
        >>> labels = torch.arange(60) % 3
        >>> views = torch.randn(60, 2, 4) + 3 * labels[:, None, None]
        >>> sequence = ViewSequence(views, torch.randn(60, 1, 2), labels=labels)
        >>> card = evaluate(lambda v: v, sequence, sequence, progress=False)      # an encoder alone
        >>> card.top1.z.accuracy > 0.9, card.skipped["transformations"]
        (True, 'the sequences do not know their group: see ViewSequence.group')
    """

    def __str__(self) -> str:
        """The table."""
        lines = [
            f"{self.settings['train_sources']} training and {self.settings['test_sources']} test sources, "
            f"{self.settings['views']} views each; 95 % intervals in brackets",
            "",
            *table(self),
        ]
        if self.skipped:
            lines += ["", "Not measured:", *(f"  {name}: {reason}" for name, reason in self.skipped.items())]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain dictionaries, lists, strings and floats.

        Features and predictions of single rows are left out. A number that does not exist is None.
        """
        shown = ("train", "test", "states")
        numbers = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in shown}
        return numbers | {"untrained_wins": list(self.untrained_wins)}

    @property
    def untrained_wins(self) -> tuple[str, ...]:
        """The measures, by their names in the table, at which the untrained model is better, in the digits printed.

        Those of which neither high nor low is better, such as R² from states, are not among them.
        """
        return won_by_untrained(self)

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
    untrained: Any = None,
    num_views: Sequence[int] | None = None,
    hidden: Sequence[int] = HIDDEN,
    batch_size: int = 256,
    autocast: torch.dtype | None = torch.bfloat16,
    max_sequences: int = 2000,
    path_rows: int | None = None,
    leave_out: Collection[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> Scorecard:
    """Measure invariance and equivariance of a model, all in one call.

    Features are extracted once, in eval mode and without gradient; every measure works on them. Each is a function of
    its own in `seqjepa.evaluation`, whose docstring defines it. What cannot be measured, for want of labels, of a
    group or of an aggregator, or because of an error (out of memory included), is left out, and the card says why.
    Labels are checked before the encoding, which takes long, where all sequences are given at once.

    Args:
        model: a [`SeqJEPA`][seqjepa.SeqJEPA]; or anything with its `encode`, `embed`, `aggregate`, and for what is
            predicted `predict` and `target`; or a function (B, T, …) → (B, T, D), an encoder alone. It is taken out of
            DistributedDataParallel, DataParallel and torch.compile.
        train: sequences that probes are fitted to, in any order: one ViewSequence, several in turn, or `Features`.
            Where several sequences show one source, give `extract(model, sequences, sources=…)`.
        test: sequences of other sources, as long.
        ood: sequences transformed out of the range of the training ones, to read with the same probes.
        untrained: a model of the same architecture that was not trained, or a function without arguments that makes
            one. Its level stands beside chance, and a measure at which it is the better one is marked. Or its card, of
            the same sequences: needed where train or test are `Features`, which hold no views to encode.
        num_views: M_val of the state's accuracy; by default those of 1, 2, 3, 5, 8 below V, and V.
        hidden: widths of the hidden layers of every regression. (1024, 1024) is SIE's, and takes several times as long.
        batch_size: sources to encode at a time.
        autocast: a dtype to encode in under autocast on a GPU; None for the model's own.
        max_sequences: how many training sequences regressions from states are fitted to, at least 2, and half as many
            test sequences; both drawn at random, of all classes and as many sources as can be. States of all lengths,
            of blank views too, are most of the work.
        path_rows: fit path integration to so many sequences, drawn anew from the views of each source by
            [`redraw`][seqjepa.evaluation.redraw] (half as many to score): 20,000 measure what a state holds, at some
            seconds a curve. None: to the sequences as they are, `max_sequences` at most.
        leave_out: measures that are not wanted, by their names on the card: `("paths", "from_states", "invariance")`
            take most of the time.
        seed: of draws, pairs, probes, shuffles and intervals.
        progress: show a progress bar, if tqdm is installed.

    Returns:
        [`Scorecard`][seqjepa.evaluation.Scorecard].

    Raises:
        ValueError: an untrained model of other shapes than the model, or with the model's own weights; sequences that
            are empty, or differ in length between train and test; features that are not finite;
            labels of another number than the sequences; a class of the test that training lacks, where all labels are
            known beforehand; a loader that leaves items out; settings below their least; measures that are unknown.
        TypeError: labels that are no integers; num_views that are no sequence of integers; one name for leave_out; an
            untrained model that is neither a model nor makes one.

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
    _check_settings(hidden, max_sequences, path_rows, num_views)
    _check_left_out(leave_out)
    for sequences in (train, test, ood):
        check_given(sequences)
    (train_labels, train_views), (test_labels, test_views) = _known(train), _known(test)
    _check_lengths(train_views, test_views, num_views)
    if train_labels is not None and test_labels is not None:
        check_classes(train_labels.cpu(), test_labels.cpu())
    twin = None if untrained is None or isinstance(untrained, Scorecard) else made(model, untrained)
    bar, begun = _bar(progress, 1 if twin is None else 2), time.perf_counter()
    bar("encode")
    beside = Beside(unwrapped(model), twin, batch_size=batch_size, autocast=autocast)
    fit, score = beside.encode("train", train), beside.encode("test", test)
    lengths, skipped = _lengths(fit, score, num_views)
    settings: dict[str, Any] = {
        "hidden": hidden, "max_sequences": max_sequences, "path_rows": path_rows, "seed": seed,
        "lengths": lengths, "begin": bar, "leave_out": leave_out,
    }  # fmt: skip
    encoding = time.perf_counter() - begun
    outside = None if ood is None else lambda: beside.encode("ood", ood)
    card = _measured(Measuring(unwrapped(model), fit, score, **settings), outside, encoding, skipped)
    if isinstance(untrained, Scorecard):
        why = _of_other_sequences(card, untrained) or _of_other_states(card, untrained)
        card = _beside(card, untrained, why)
    elif twin is not None and not beside.why:
        others = beside.others
        outside = (lambda: others["ood"]) if "ood" in others else None
        measuring = Measuring(twin, others["train"], others["test"], levels=False, **settings)
        level = _measured(measuring, outside, encoding, skipped)
        card = _beside(card, level, _of_other_states(card, level))
    elif twin is not None:
        card = _beside(card, None, beside.why)
    bar("")
    return card


def _measured(
    measuring: Measuring, ood: Callable[[], Features] | None, encoding: float, skipped: Mapping[str, str]
) -> Scorecard:
    """The card of one model, and what else is skipped."""
    begun, fit, score = time.perf_counter(), measuring.train, measuring.test
    results = measuring.all(ood)
    settings = {
        "train_sources": len(fit.source_numbers.unique()),
        "test_sources": len(score.source_numbers.unique()),
        "train_sequences": len(fit.z),
        "test_sequences": len(score.z),
        "views": score.num_views,
        "hidden": list(measuring.hidden),
        "max_sequences": measuring.max_sequences,
        "path_rows": measuring.path_rows,
        "seed": measuring.seed,
        "seconds_encoding": encoding,
        "seconds_measuring": time.perf_counter() - begun,
    }
    return Scorecard(**results, skipped={**measuring.skipped, **skipped}, settings=settings, train=fit, test=score)


def _beside(card: Scorecard, untrained: Scorecard | None, why: str) -> Scorecard:
    """The card with the untrained model's, or with why it has none."""
    if why:
        return replace(card, skipped={**card.skipped, "untrained": why})
    return replace(card, untrained=untrained)


def _of_other_sequences(card: Scorecard, untrained: Scorecard) -> str:
    """Why a card is no level for another, or nothing."""
    for name in ("train", "test"):
        ours, theirs = getattr(card, name), getattr(untrained, name)
        if ours.actions.shape != theirs.actions.shape or not torch.equal(ours.actions.cpu(), theirs.actions.cpu()):
            return f"the untrained model's card is of other {name} sequences: its actions are not those of the model's"
        if ours.z.shape != theirs.z.shape:
            return (
                f"the untrained model is of another architecture: its z is {theirs.z.shape[-1]} wide, the model's "
                f"{ours.z.shape[-1]}"
            )
    return ""


def _of_other_states(card: Scorecard, untrained: Scorecard) -> str:
    """Why a card is no level for another whose z is as wide, or nothing."""
    ours, theirs = card.states, untrained.states
    if ours is not None and theirs is not None and ours.shape[-1] != theirs.shape[-1]:
        return (
            f"the untrained model is of another architecture: its state is {theirs.shape[-1]} wide, the model's "
            f"{ours.shape[-1]}"
        )
    return ""


def _lengths(fit: Features, score: Features, num_views: Sequence[int] | None) -> tuple[list[int], dict[str, str]]:
    """The M_val that there are views for, and those asked for that there are none for: known after the encoding."""
    _check_lengths(fit.num_views, score.num_views, None)
    views = score.num_views
    asked = {m for m in (1, 2, 3, 5, 8) if m < views} | {views} if num_views is None else set(num_views)
    beyond = {m: f"num_views (M_val) beyond the {views} views that there are" for m in asked if m > views}
    return sorted(asked - beyond.keys()), {f"top1, state of {m}": why for m, why in beyond.items()}


def _check_settings(
    hidden: Sequence[int], max_sequences: int, path_rows: int | None, num_views: Sequence[int] | None
) -> None:
    if num_views is not None:
        whole = isinstance(num_views, Iterable) and all(hasattr(m, "__index__") for m in num_views)
        if not whole:
            raise TypeError(f"num_views (M_val) lists whole numbers of views, such as (1, 3, 5); got {num_views!r}.")
    if max_sequences < 2:
        raise ValueError(f"max_sequences is what regressions are fitted to, at least 2; got {max_sequences}.")
    if path_rows is not None and path_rows < 2:
        raise ValueError(f"path_rows is what path integration is fitted to, at least 2; got {path_rows}.")
    if any(width < 1 for width in hidden):
        raise ValueError(
            f"hidden lists the widths of the hidden layers, each at least 1, or () for none; got {hidden}."
        )


def _check_left_out(names: Collection[str]) -> None:
    if isinstance(names, str):
        raise TypeError(f"leave_out lists names of measures, such as ({names!r},); got {names!r} alone.")
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise ValueError(f"leave_out lists measures by name, some of {', '.join(MEASURES)}; got {unknown[0]!r}.")


def _known(sequences: Any) -> tuple[Tensor | None, int | None]:
    """Labels and number of views, where they are known before the encoding."""
    if isinstance(sequences, Features):
        if sequences.labels is not None:
            check_integers("labels", sequences.labels, "the class of each sequence")
            check_rows(z=sequences.z, labels=sequences.labels)
        return sequences.labels, sequences.num_views
    parts = known_sequences(sequences)
    if not parts:
        return None, None
    labels = [part.labels for part in parts if part.labels is not None]
    return torch.cat(labels) if len(labels) == len(parts) else None, parts[0].views.shape[1]


def _check_lengths(train: int | None, test: int | None, num_views: Sequence[int] | None) -> None:
    if train is not None and test is not None and train != test:
        raise ValueError(f"Training and test sequences must be equally long; got {train} and {test} views.")
    for m in num_views or ():
        if m < 1 or (test is not None and m > test):
            rule = "at least 1" if test is None else f"from 1 to the {test} views that there are"
            raise ValueError(f"num_views (M_val) must be {rule}; got {m}.")


def _bar(progress: bool, models: int) -> Callable[[str], None]:
    """Called with what is measured next; with "" at the end."""
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:
            return lambda name: None  # no bar without it
        bar = tqdm(total=models * len(MEASURES) + 1, desc="encode", unit="measure")

        def advance(name: str) -> None:
            if name:
                bar.set_description(name)
                bar.update(name != "encode")
            else:
                bar.update()
                bar.close()

        return advance
    return lambda name: None


def _plain(value: Any) -> Any:
    """Results as JSON knows them; tensors of single rows are left out."""
    if isinstance(value, Scorecard):
        return value.to_dict()
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
