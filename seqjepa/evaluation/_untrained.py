"""A model that was not trained, beside the one that was: made, compared, and shown the same sequences."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from seqjepa.evaluation._frozen import unwrapped
from seqjepa.evaluation.features import Features, extract
from seqjepa.types import ViewSequence

__all__ = ["Beside", "made"]


def made(model: Any, untrained: Any) -> Any:
    """The untrained model: as it is given, or made by a function without arguments; an error unless it is a twin."""
    other = unwrapped(untrained() if _makes(untrained) else untrained)
    model = unwrapped(model)
    if not callable(other) and not hasattr(other, "encode"):
        raise TypeError(
            "untrained must be a model, its card, or a function without arguments that makes a model; got "
            f"{type(other).__name__}{', made by the function' if other is not untrained else ''}. "
            "Give one, such as untrained=lambda: build()."
        )
    if other is model:
        raise ValueError(
            "untrained is the model itself. Build one of the same architecture anew, such as untrained=lambda: build()."
        )
    if isinstance(model, nn.Module) and isinstance(other, nn.Module):
        _check_twin(model, other)
    if hasattr(model, "encode") != hasattr(other, "encode"):
        raise ValueError(
            "The untrained model must be of the same architecture; one is an encoder alone, the other is a model with "
            f"encode, embed and aggregate: got {type(model).__name__}, and untrained {type(other).__name__}."
        )
    return other


def _makes(untrained: Any) -> bool:
    """Whether it is called to get a model: a class, or a function that needs no arguments."""
    if isinstance(untrained, nn.Module) or not callable(untrained):
        return False
    is_class = inspect.isclass(untrained)
    if hasattr(untrained, "encode") and not is_class:
        return False
    try:
        parameters = inspect.signature(untrained).parameters.values()
    except ValueError:  # one written in C
        return is_class
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if is_class and needed:
        raise TypeError(
            f"untrained is called without arguments where it is a class; {untrained.__name__} needs "
            f"{', '.join(needed)}. Give untrained=lambda: {untrained.__name__}(…), or the model itself."
        )
    return not needed


def _check_twin(model: nn.Module, other: nn.Module) -> None:
    weights, fresh = (dict(m.named_parameters()) for m in (model, other))
    own, others = ({name: tuple(p.shape) for name, p in named.items()} for named in (weights, fresh))
    if own != others:
        name = next(name for name in [*own, *others] if own.get(name) != others.get(name))
        raise ValueError(
            f"The untrained model must be of the same architecture; {name} is of shape {own.get(name, 'none')} in the "
            f"model and of shape {others.get(name, 'none')} in the untrained one. Build both alike."
        )
    learnt = [name for name, p in weights.items() if p.requires_grad]
    if learnt and all(torch.equal(weights[name].cpu(), fresh[name].cpu()) for name in learnt):
        raise ValueError(
            "The untrained model has the weights of the model, every one: it is a copy. Build it anew, or copy the "
            "model before it is trained."
        )


class Beside:
    """Features of a model, and of a second one of the same sequences, which may come only once.

    Whatever goes wrong with the second is kept as `why`, and costs the first nothing.
    """

    def __init__(self, model: Any, other: Any, **settings: Any) -> None:
        self.model, self.other, self.settings, self.why = model, other, settings, ""
        self.others: dict[str, Features] = {}

    def encode(self, name: str, sequences: ViewSequence | Iterable[ViewSequence] | Features) -> Features:
        """The model's features; those of the other are kept in `others`, by name."""
        if isinstance(sequences, Features):
            self.why = self.why or f"{name} was given as features, which hold no views: give the untrained model's card"
            return sequences
        if self.other is None:
            return extract(self.model, sequences, **self.settings)
        parts: list[Features] = []
        features = extract(self.model, self._watched(sequences, parts), **self.settings)
        if not self.why:
            self._keep(name, features, parts)
        return features

    def _watched(self, sequences: Any, parts: list[Features]) -> Iterator[ViewSequence]:
        """The sequences as they come, each of them encoded by the other too."""
        for sequence in [sequences] if isinstance(sequences, ViewSequence) else sequences:
            if not self.why:
                try:
                    parts.append(extract(self.other, sequence, **self.settings))
                except Exception as error:
                    self.why = f"{type(error).__name__}: {error}"
            yield sequence

    def _keep(self, name: str, features: Features, parts: list[Features]) -> None:
        made: dict[str, Any] = {}
        for field in ("z", "e", "target"):
            ours, theirs = getattr(features, field), [getattr(part, field) for part in parts]
            widths = {None if x is None else x.shape[-1] for x in (ours, *theirs)}
            if len(widths) > 1:
                self.why = (
                    f"the untrained model is of another architecture: its {field} is {_width(theirs[0])} wide, the "
                    f"model's {_width(ours)}"
                )
                return
            made[field] = None if ours is None else torch.cat(theirs)
        self.others[name] = replace(features, pictures=None, pictured=None, **made)


def _width(x: Tensor | None) -> str:
    return "nothing" if x is None else str(x.shape[-1])
