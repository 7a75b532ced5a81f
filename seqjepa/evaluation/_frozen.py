"""A model as it is measured: out of its wrappers, in eval mode, without gradient, in the dtype of its weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import unwrap
from seqjepa._modes import eval_mode

__all__ = ["ROWS", "Remembering", "call", "evaluating", "infer", "modules_of", "to_weights", "unwrapped", "widened"]

PARTS = {
    "encode": "encoder", "embed": "embedder", "aggregate": "aggregator", "aggregate_prefixes": "aggregator",
    "imagine_from": "aggregator", "predict": "predictor", "infer": "network",
}  # fmt: skip
ROWS = 4096  # sources or rows at a time where a batch size is not given


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel, DataParallel and torch.compile, which hide its parts."""
    model = model.model if isinstance(model, Remembering) else model
    return unwrap(model) if isinstance(model, nn.Module) else model


class Remembering:
    """A model whose states of some features are made once, whoever asks for them; all else of it is the model's.

    Args:
        model: out of its wrappers.
        of: the features that are asked about again and again; states of others are not kept.
    """

    def __init__(self, model: Any, of: Sequence[object]) -> None:
        self.model, self.of = model, list(of)
        self.made: dict[tuple[int, object], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        """The model's own."""
        return getattr(self.model, name)

    def remembered(self, features: object, which: object, make: Callable[[], Tensor]) -> Tensor:
        """What was made for these features, or is now."""
        if all(features is not one for one in self.of):
            return make()
        key = id(features), which
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Without gradient, and with every module in eval mode; afterwards each is in the mode it was in.

    A probe that is fitted with the encoder in training mode moves its batch-norm statistics: what it measures is then
    no longer what was trained. Functions and other objects are searched for the modules that they use.
    """
    owners = [owner for model in models for owner in modules_of(model)]
    cache = torch.is_autocast_cache_enabled()
    try:
        # Under the caller's autocast, a weight that was cast without gradient must not be handed to a pass that learns.
        torch.set_autocast_cache_enabled(False)
        with eval_mode(*owners), torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)


def modules_of(model: Any, depth: int = 3) -> list[nn.Module]:
    """The modules behind a model: itself, or what a function, a partial or an object names, a few levels down.

    A module that is hidden deeper, such as in a list, is not found.
    """
    if isinstance(model, nn.Module):
        return [model]
    held: list[Any] = []
    if isinstance(model, functools.partial):
        held = [model.func, *model.args, *model.keywords.values()]
    elif inspect.ismethod(model):
        held = [model.__self__]
    elif inspect.isfunction(model):
        cells = [cell.cell_contents for cell in model.__closure__ or () if _is_filled(cell)]
        names = [model.__globals__[name] for name in model.__code__.co_names if name in model.__globals__]
        held = [*cells, *names, *(model.__defaults__ or ())]
    elif hasattr(model, "__dict__") and not inspect.isclass(model) and not inspect.ismodule(model):
        held = list(vars(model).values())
    return [module for part in held for module in modules_of(part, depth - 1)] if depth else []


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that is not set yet
        return False


def to_weights(model: Any, part: str, *inputs: Tensor) -> list[Tensor]:
    """Floating-point inputs in the dtype of the weights behind `model.encode`, `.embed`, `.aggregate` or `.predict`.

    Of an inverse model, which is called itself, behind "infer".

    As they are where there are no weights, or weights of several dtypes: such a part converts by itself. One part need
    not have the dtype of another: an averaged target stays in float32, and a backbone in half precision carries heads
    in float32.
    """
    owner = getattr(model, PARTS[part], None)
    owners = [owner] if isinstance(owner, nn.Module) else modules_of(model)
    weights = (p for module in owners for p in module.parameters())
    dtypes = {p.dtype for p in weights if p.is_floating_point()}
    if len(dtypes) != 1:
        return list(inputs)
    dtype = dtypes.pop()
    return [x.to(dtype) if x.is_floating_point() else x for x in inputs]


def widened(x: Tensor) -> Tensor:
    """In float32, or wider where it is: what features are measured in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def call(model: Any, part: str, *inputs: Tensor) -> Tensor:
    """What `model.aggregate`, `.embed`, `.predict` or `.imagine_from` makes of features, some rows at a time."""
    model = unwrapped(model)
    function = getattr(model, part)
    with evaluating(model, function):
        chunks = zip(*(x.split(ROWS) for x in inputs), strict=True)
        return torch.cat([widened(function(*to_weights(model, part, *chunk))) for chunk in chunks])


def infer(inverse: Any, z: Float[Tensor, "N T D"], z_next: Float[Tensor, "N T D"]) -> Float[Tensor, "N T n"]:
    """The actions that an inverse model infers from both ends of each step, some rows at a time."""
    inverse = unwrapped(inverse)
    with evaluating(inverse):
        chunks = zip(z.split(ROWS), z_next.split(ROWS), strict=True)
        made = [inverse(*to_weights(inverse, "infer", *chunk)) for chunk in chunks]
    for actions in made:
        if not isinstance(actions, Tensor) or actions.ndim != 3 or actions.shape[1] != z.shape[1]:
            came = tuple(actions.shape) if isinstance(actions, Tensor) else type(actions).__name__
            raise ValueError(
                "An inverse model maps both ends of each step, (B, T, D) twice, to actions (B, T, n); of "
                f"{tuple(z.shape)} it made {came}. Of an InverseModel give the module itself."
            )
    return torch.cat([widened(actions) for actions in made])
