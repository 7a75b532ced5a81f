"""What all methods share: how they are called, what they return, and what a scorecard asks them for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_batch_norm, check_sequence
from seqjepa._modes import fresh_casts
from seqjepa.actions import ActionEmbedder, NoActions, RawActions
from seqjepa.aggregator import last_view
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.encoders import encode_views
from seqjepa.target import EMATarget

__all__ = [
    "Averaged", "Baseline", "BaselineOutput", "OnlineProjection", "Predictive", "check_weights",
    "embedding", "setting", "told",
]  # fmt: skip

Setting = TypeVar("Setting")


class BaselineOutput(NamedTuple):
    """What one forward pass of a baseline leaves.

    Attributes:
        loss: () scalar to call `.backward()` on.
        z: (B, V, D) online encodings of the views that were used: what is probed.
        terms: the parts of the loss by name, () each, detached, before their weights: for logging.
        prediction: (N, P) predicted projections, or None of a method that predicts nothing.
        target: (N, P) what they were to be, without gradient, or None.
    """

    loss: Float[Tensor, ""]
    z: Float[Tensor, "B V D"]
    terms: dict[str, Tensor]
    prediction: Float[Tensor, "N P"] | None = None
    target: Float[Tensor, "N P"] | None = None


class Baseline(nn.Module):
    """A method of the paper's table: `encode` is what it learns, `forward` its loss.

    `embed` and `aggregate` are there for the scorecard: a method of two views aggregates nothing, so its state is z of
    the last view. A method of your own adds `forward`, which returns a
    [`BaselineOutput`][seqjepa.baselines.BaselineOutput].

    Args:
        encoder: (N, …) → (N, D).
        embedder: actions (B, K, A) → (B, K, E); `NoActions()` by default.
        pairs: which views make a pair; the first and the second by default.

    Examples:
        >>> import torch
        >>> class Nearness(Baseline):                              # two views alike: without more it collapses
        ...     def forward(self, views, actions):
        ...         z = self.encode(self.pairs(views, actions).views)
        ...         return BaselineOutput((z[:, 0] - z[:, 1]).square().mean(), z, {})
        >>> method = Nearness(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)))
        >>> method(torch.rand(5, 3, 3, 2, 2), torch.randn(5, 2, 1)).z.shape
        torch.Size([5, 2, 4])
    """

    encoder: Any
    embedder: Any
    pairs: ViewPairs

    def __init__(self, encoder: nn.Module, embedder: nn.Module | None = None, pairs: ViewPairs | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedder = NoActions() if embedder is None else embedder
        self.pairs = ViewPairs() if pairs is None else pairs

    def encode(self, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "B T D"]:
        """Encode every view by itself: what is probed."""
        return encode_views(self.encoder, views)

    def embed(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T E"]:
        """Embed every action by itself; in no numbers, E = 0, where the method is told none."""
        if isinstance(self.embedder, RawActions) and actions.shape[-1] != self.embedder.embed_dim:
            raise ValueError(
                f"An action has {self.embedder.embed_dim} numbers here, which are told as they are; got "
                f"{actions.shape[-1]}. Build {type(self).__name__} with action_dim={actions.shape[-1]}."
            )
        return self.embedder(actions)

    def aggregate(
        self, z: Float[Tensor, "B T D"], e: Float[Tensor, "B steps E"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B D"]:
        """Z of the last view, or of the last that counts: nothing is aggregated."""
        check_axes("z", z, "B T D")
        if mask is None:
            return z[:, -1]
        return z[torch.arange(len(z), device=z.device), last_view(mask, z)]

    def update_target(self) -> None:
        """Nothing to move: this method has no averaged target."""

    def _checked(self, views: Tensor, actions: Tensor, mask: Tensor | None) -> None:
        check_sequence(views, actions)
        if views.shape[1] < 2:
            raise ValueError(f"A method of pairs needs at least two views of a source; got {views.shape[1]}.")
        if mask is not None:
            raise ValueError(
                f"{type(self).__name__} takes no mask: a pair of views must not meet padding. Draw pairs of views "
                "before padding, and leave the mask out."
            )
        check_batch_norm(views.shape[0], self.training, "sources")


class Predictive(Baseline):
    """A method that predicts the projection of one view from that of another, in the projector's space.

    Attributes:
        predicts_z: False: a prediction is no z, and cannot be fed back as a view.
    """

    predicts_z = False

    projector: Any
    predictor: Any

    def predict(self, state: Float[Tensor, "B D"], e: Float[Tensor, "B E"]) -> Float[Tensor, "B P"]:
        """The projection expected of the view that an action leads to, from z of the view it leaves."""
        return self.predictor(self.projector(state), e)

    def _predict_pairs(self, y: Float[Tensor, "B K P"], e: Float[Tensor, "B K E"]) -> Float[Tensor, "B K P"]:
        """All pairs in one call, so that batch norm sees them together."""
        return self.predictor(y.flatten(0, 1), e.flatten(0, 1)).unflatten(0, y.shape[:2])


class OnlineProjection(Predictive):
    """A predictive method whose target is the online network's own projection."""

    def target(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B P"]:
        """The projection of one view of each source, without gradient: what predictions are compared with."""
        with torch.no_grad(), fresh_casts(views.device):
            return self.projector(self.encode(views[:, None]))[:, 0]


class Averaged(Predictive):
    """A predictive method whose target is an average of encoder and projector over the steps."""

    target: EMATarget

    def update_target(self) -> None:
        """Move the averaged encoder and projector one step: call it after each optimiser step."""
        self.target.update(nn.Sequential(self.encoder, self.projector))

    def _target_of(self, views: Float[Tensor, "B K *image"]) -> Float[Tensor, "B K P"]:
        return self.target(views.flatten(0, 1)).unflatten(0, views.shape[:2])


def setting(name: str, known: Mapping[str, Setting]) -> Setting:
    """The settings of that name, or an error that lists them."""
    if name not in known:
        raise ValueError(f"settings must be one of {', '.join(map(repr, known))}; got {name!r}.")
    return known[name]


def told(action_dim: int | None, method: str) -> int:
    """The size of an action, or an error where a method is to be told actions and does not know it."""
    if action_dim is None:
        raise ValueError(f"{method} is told actions, and must know their size; got None. Give action_dim=A.")
    return action_dim


def embedding(embedder: nn.Module | None, action_dim: int | None, method: str) -> tuple[nn.Module, int]:
    """The embedder that was given, or one of 128 numbers, and its width E."""
    known: Any = ActionEmbedder(told(action_dim, method)) if embedder is None else embedder
    return known, known.embed_dim


def check_weights(**weights: float) -> None:
    """Raise unless every weight of a loss is at least 0."""
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name} must be at least 0; got {weight}.")
