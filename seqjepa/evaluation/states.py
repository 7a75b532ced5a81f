"""States of views that were encoded before: what the aggregator makes of them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import unwrap
from seqjepa.evaluation._frozen import Remembering, call
from seqjepa.evaluation.features import Features

__all__ = ["aggregate_states", "blank_views"]


def aggregate_states(
    model: Any,
    features: Features,
    num_views: int,
    *,
    z: Float[Tensor, "N V D"] | None = None,
    e: Float[Tensor, "N T E"] | None = None,
    start: int = 0,
) -> Float[Tensor, "N S"]:
    """The state of `num_views` views of each source, from the view `start` on.

    Args:
        model: anything with `aggregate`.
        features: of [`extract`][seqjepa.evaluation.extract].
        num_views: M, from 1 to the views there are.
        z: instead of the features' own: blank or shuffled ones.
        e: likewise.
        start: the first view.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> features = extract(model, ViewSequence(torch.rand(4, 3, 3, 32, 32), torch.randn(4, 2, 2)))
        >>> aggregate_states(model, features, 2).shape
        torch.Size([4, 640])
    """
    if not 1 <= num_views <= features.num_views - start:
        raise ValueError(
            f"num_views (M_val) must be from 1 to the {features.num_views - start} views that there are; got "
            f"{num_views}. Make sequences of more views, or ask for fewer."
        )
    if features.e is None:
        raise ValueError("A state needs a model with embed and aggregate; these are the features of an encoder alone.")
    stop, z, e = start + num_views, features.z if z is None else z, features.e if e is None else e
    own = z is features.z and (e is features.e or num_views == 1)

    def make() -> Tensor:
        return call(model, "aggregate", z[:, start:stop], e[:, start : stop - 1])

    if not own or not isinstance(model, Remembering):
        return make()
    if start == 0 and _in_one_pass(model):
        own_e = features.e
        every = model.remembered(features, "prefixes", lambda: call(model, "aggregate_prefixes", features.z, own_e))
        return every[:, num_views - 1]
    return model.remembered(features, (start, stop), make)


def _in_one_pass(model: Remembering) -> bool:
    """Whether the aggregator makes states of all lengths at once, as a causal one does."""
    aggregator = getattr(model, "aggregator", None)
    causal = isinstance(aggregator, nn.Module) and hasattr(unwrap(aggregator), "prefixes")
    return causal and hasattr(model, "aggregate_prefixes")


def blank_views(features: Features, train: Features) -> Float[Tensor, "N V D"]:
    """Views that show nothing: the mean view's z of the training sources."""
    return train.z.mean(dim=(0, 1)).expand_as(features.z)
