"""Everything at once: a scorecard of invariance and equivariance."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from seqjepa.evaluation._table import table
from seqjepa.evaluation.features import Features, extract
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
        num_views: M_val of the state's accuracy; by default those of 1, 2, 3, 5, 8 below V, and V.
        hidden: widths of the hidden layers of every regression. (1024, 1024) is SIE's, and takes several times as long.
        batch_size: sources to encode at a time.
        autocast: a dtype to encode in under autocast on a GPU; None for the model's own.
        max_sequences: how many training sequences regressions from states are fitted to, at least 2, and half as many
            test sequences; both drawn at random, of all classes and as many sources as can be. States of all lengths,
            of blank views too, are most of the work.
        seed: of draws, pairs, probes, shuffles and intervals.
        progress: show a progress bar, if tqdm is installed.

    Returns:
        [`Scorecard`][seqjepa.evaluation.Scorecard].

    Raises:
        ValueError: sequences that are empty, or differ in length between train and test; features that are not finite;
            labels of another number than the sequences; a class of the test that training lacks, where all labels are
            known beforehand; a loader that leaves items out; settings below their least.
        TypeError: labels that are no integers.

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
    _check_settings(hidden, max_sequences)
    for sequences in (train, test, ood):
        check_given(sequences)
    (train_labels, train_views), (test_labels, test_views) = _known(train), _known(test)
    _check_lengths(train_views, test_views, num_views)
    if train_labels is not None and test_labels is not None:
        check_classes(train_labels.cpu(), test_labels.cpu())
    begun = time.perf_counter()
    bar = _bar(progress)

    def features(sequences: Any) -> Features:
        if isinstance(sequences, Features):
            return sequences
        return extract(model, sequences, batch_size=batch_size, autocast=autocast)

    bar("encode")
    fit, score = features(train), features(test)
    _check_lengths(fit.num_views, score.num_views, num_views)
    encoded, views = time.perf_counter(), score.num_views
    lengths = {m for m in (1, 2, 3, 5, 8) if m < views} | {views} if num_views is None else num_views
    measuring = Measuring(unwrapped(model), fit, score, sorted(lengths), hidden, max_sequences, seed, bar)
    made = measuring.all(None if ood is None else lambda: features(ood))
    settings = {
        "train_sources": len(fit.source_numbers.unique()),
        "test_sources": len(score.source_numbers.unique()),
        "train_sequences": len(fit.z),
        "test_sequences": len(score.z),
        "views": views,
        "hidden": list(hidden),
        "max_sequences": max_sequences,
        "seed": seed,
        "seconds_encoding": encoded - begun,
        "seconds_measuring": time.perf_counter() - encoded,
    }
    return Scorecard(**made, skipped=measuring.skipped, settings=settings, train=fit, test=score)


def _check_settings(hidden: Sequence[int], max_sequences: int) -> None:
    if max_sequences < 2:
        raise ValueError(f"max_sequences is what regressions are fitted to, at least 2; got {max_sequences}.")
    if any(width < 1 for width in hidden):
        raise ValueError(
            f"hidden lists the widths of the hidden layers, each at least 1, or () for none; got {hidden}."
        )


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


def _bar(progress: bool) -> Callable[[str], None]:
    """Called with what is measured next; with "" at the end."""
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:
            return lambda name: None  # no bar without it
        bar = tqdm(total=MEASURES + 1, desc="encode", unit="measure")

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
