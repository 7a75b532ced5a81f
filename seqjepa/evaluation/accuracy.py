"""Accuracy of z and of the state, by the number of views: what invariance is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from seqjepa.evaluation.features import Features
from seqjepa.evaluation.probes import Classification, knn_probe, linear_probe
from seqjepa.evaluation.states import aggregate_states

__all__ = ["Top1", "observation_grid", "top1"]


@dataclass(frozen=True, eq=False)
class Top1:
    """Accuracy of linear probes: of z, and of the state of M views for several M.

    Attributes:
        z: of the encoder output of each source's first view.
        states: M_val → of the state of each source's first M views; empty for an encoder alone.
        knn: "z", and "state of M" and "mean z of M" for the largest M_val → of the 20 nearest neighbours, for which
            nothing is fitted.
        means: M_val from 2 on → of the mean of z over each source's first M views, what an aggregator must beat; empty
            for an encoder alone.
    """

    z: Classification
    states: Mapping[int, Classification]
    knn: Mapping[str, Classification] = field(default_factory=dict)
    means: Mapping[int, Classification] = field(default_factory=dict)


def top1(model: Any, train: Features, test: Features, *, num_views: Sequence[int] = (1, 3, 5), seed: int = 0) -> Top1:
    """Top-1 accuracy of z and of the state at each M_val: what invariance is worth.

    A linear probe is fitted to the training features and scored on the test features. z is that of the first view, as
    in SIE; the state is of the first M views. The paper claims that the state classifies better than z, and better the
    more views it has seen; the mean of z over the same views says how much of that comes of their number. Chance is the
    accuracy of always answering the class that is commonest in training.

    Args:
        model: anything with `aggregate`; unused for the features of an encoder alone.
        train: features of the training sources, with labels.
        test: features of other sources, with labels.
        num_views: M_val of the states.
        seed: of the probes.

    Raises:
        ValueError: no labels; M_val beyond the views there are; and what `linear_probe` refuses.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), tables 1 and 2, figure 4.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> views, labels = torch.randn(80, 2, 4), torch.arange(80) % 2
        >>> sequence = ViewSequence(views + 3 * labels[:, None, None], torch.randn(80, 1, 2), labels=labels)
        >>> features = extract(lambda v: v, sequence)
        >>> top1(None, features, features).z.accuracy > 0.9
        True
    """
    if train.labels is None or test.labels is None:
        raise ValueError("Accuracy needs labels; the sequences have none. Give the ViewSequences their labels.")
    lengths = list(num_views) if train.e is not None else []
    sets: dict[tuple[str, int], tuple[Tensor, Tensor]] = {("z", 1): (train.z[:, 0], test.z[:, 0])}
    for m in lengths:
        sets["state", m] = aggregate_states(model, train, m), aggregate_states(model, test, m)
        if m > 1:
            sets["mean z", m] = train.z[:, :m].mean(dim=1), test.z[:, :m].mean(dim=1)
    probes: dict[str, dict[int, Classification]] = {"z": {}, "state": {}, "mean z": {}}
    knn = {}
    for (name, m), (fit, score) in sets.items():
        rows = fit, train.labels, score, test.labels
        probes[name][m] = linear_probe(*rows, train_sources=train.sources, test_sources=test.sources, seed=seed)
        if name == "z" or m == max(lengths):
            key = "z" if name == "z" else f"{name} of {m}"
            knn[key] = knn_probe(*rows, k=min(20, len(fit)), test_sources=test.sources, seed=seed)
    return Top1(z=probes["z"][1], states=probes["state"], knn=knn, means=probes["mean z"])


def observation_grid(
    models: Mapping[int, Any],
    features: Mapping[int, tuple[Features, Features]],
    *,
    num_views: Sequence[int],
    seed: int = 0,
) -> dict[int, dict[int, Classification]]:
    """The M_tr × M_val grid: accuracy of the state, by how many views models were trained on and are given.

    Args:
        models: M_tr → model.
        features: M_tr → (train, test) features of that model.
        num_views: the M_val.
        seed: of the probes.

    Returns:
        M_tr → M_val → [`Classification`][seqjepa.evaluation.Classification].

    Raises:
        ValueError: models and features of different M_tr; M_val beyond the views there are; no labels; features of an
            encoder alone, which has no state.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), figure 4.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> labels = torch.arange(20) % 2
        >>> sequence = ViewSequence(torch.rand(20, 3, 3, 32, 32), torch.randn(20, 2, 2), labels=labels)
        >>> features = extract(model, sequence)
        >>> list(observation_grid({2: model}, {2: (features, features)}, num_views=(1, 3))[2])
        [1, 3]
    """
    if models.keys() != features.keys():
        raise ValueError(f"Give features for every model; got models of M_tr {[*models]}, features of {[*features]}.")
    for m_tr, (train, _) in features.items():
        if train.e is None:
            raise ValueError(f"The grid is of states; the features of M_tr {m_tr} are those of an encoder alone.")
    return {
        m_tr: dict(top1(models[m_tr], train, test, num_views=num_views, seed=seed).states)
        for m_tr, (train, test) in features.items()
    }
