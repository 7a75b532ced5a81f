"""SeqJEPA: the parts, put together."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_like, check_sequence, unwrap
from seqjepa.actions import ActionEmbedder
from seqjepa.aggregator import SequenceAggregator, last_view
from seqjepa.causal import CausalAggregator
from seqjepa.encoders import encode_views, feature_width, timm_encoder
from seqjepa.hub import PretrainedModule
from seqjepa.loss import SeqJEPALoss
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, Momentum, OnlineTarget, StopGradientTarget
from seqjepa.types import SeqJEPAOutput

__all__ = ["SeqJEPA"]


class SeqJEPA(PretrainedModule):
    """Learn an equivariant and an invariant representation at once, by predicting the next view of a sequence.

    ```
    z     = encoder(views)                        equivariant to the actions
    state = aggregator([z_t ; e_t], t = 1 … T)    invariant to them; the last view's e is zero
    loss  = distance(predictor([state ; e_T]), target encoder(view T+1))
    ```

    Each part is a module of its own; swap any of them. [`from_timm`][seqjepa.SeqJEPA.from_timm] and
    [`from_encoder`][seqjepa.SeqJEPA.from_encoder] build the paper's around an encoder.

    Args:
        encoder: (N, …) → (N, D), such as an image encoder (N, C, H, W) → (N, D).
        embedder: (B, T, A) → (B, T, E), with `embed_dim`.
        aggregator: tokens (B, T, D + E) → (B, S); and a mask (B, T) besides, where one is given.
        predictor: (B, S), (B, E) → (B, D).
        target: view (B, …) → (B, D), with `update(encoder)`; `EMATarget(encoder)` by default.
        loss: prediction, target, z, mask → loss and terms; the cosine distance by default.

    Raises:
        ValueError: parts whose widths do not fit.

    Source:
        Ghaemi, Muller & Bakhtiari 2025 (arXiv 2505.03176).

    Examples:
        >>> import torch
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=True)
        >>> views, actions = torch.rand(8, 4, 3, 32, 32), torch.randn(8, 3, 4)
        >>> out = model(views, actions)
        >>> out.loss.backward()
        >>> model.update_target()
        >>> z = model.encode(views)
        >>> state = model.aggregate(z[:, :3], model.embed(actions[:, :2]))
        >>> model.predict(state, model.embed(actions)[:, 2]).shape
        torch.Size([8, 512])
    """

    encoder: Any
    embedder: Any
    aggregator: Any
    predictor: Any
    target: Any
    loss: Any

    def __init__(
        self,
        encoder: nn.Module,
        embedder: nn.Module,
        aggregator: nn.Module,
        predictor: nn.Module,
        target: nn.Module | None = None,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check_widths(embedder, aggregator, predictor)
        self.encoder = encoder
        self.embedder = embedder
        self.aggregator = aggregator
        self.predictor = predictor
        self.target = EMATarget(encoder) if target is None else target
        self.loss = SeqJEPALoss() if loss is None else loss
        if isinstance(target, StopGradientTarget | OnlineTarget):
            target.update(encoder)  # its encoder is this model's, whichever it was given

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int,
        view_shape: tuple[int, ...] = (3, 64, 64),
        embedder: nn.Module | None = None,
        heads: int = 4,
        momentum: Momentum = 0.996,
        target: nn.Module | None = None,
        loss: nn.Module | None = None,
    ) -> SeqJEPA:
        """The paper's model around your own encoder; its width is found by encoding one blank view.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: A, numbers in an action.
            view_shape: shape of one view, (C, H, W) for images.
            embedder: the paper's `ActionEmbedder(action_dim, 128)` by default; `NoActions()` for the ablation.
            heads: attention heads of the aggregator (4 in the paper); must divide D + E.
            momentum: of the EMA target: a number, or a schedule of the step.
            target: instead of the EMA target, such as `StopGradientTarget(encoder)`.
            loss: the cosine distance by default.

        Returns:
            The model, with the paper's three layers and a predictor of hidden width 1024.

        Raises:
            ValueError: an encoder that returns no vectors, or whose D + E does not split into the heads: then give
                `heads`, or an embedder of another `embed_dim`.
            TypeError: an embedder that does not say its `embed_dim`.

        Examples:
            >>> import torch
            >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 64))
            >>> model = SeqJEPA.from_encoder(encoder, action_dim=2, view_shape=(3, 8, 8))
            >>> model.aggregator.dim
            192
        """
        dim = feature_width(encoder, view_shape)
        embedder = ActionEmbedder(action_dim) if embedder is None else embedder
        embed_dim: Any = getattr(embedder, "embed_dim", None)
        if not isinstance(embed_dim, int):
            raise TypeError(
                f"An embedder says how wide its embeddings are by embed_dim, a whole number; {type(embedder).__name__} "
                f"has {'none' if embed_dim is None else embed_dim}. Set self.embed_dim in its __init__."
            )
        return cls(
            encoder=encoder,
            embedder=embedder,
            aggregator=SequenceAggregator(dim + embed_dim, heads=heads),
            predictor=ConditionedPredictor(state_dim=dim + embed_dim, action_dim=embed_dim, dim=dim),
            target=EMATarget(encoder, momentum) if target is None else target,
            loss=loss,
        )

    @classmethod
    def from_timm(
        cls,
        name: str,
        *,
        action_dim: int,
        img_size: int | tuple[int, int] | None = None,
        cifar_stem: bool = False,
        pretrained: bool = False,
        embedder: nn.Module | None = None,
        heads: int = 4,
        momentum: Momentum = 0.996,
        loss: nn.Module | None = None,
        **timm_options: Any,
    ) -> SeqJEPA:
        """The paper's model around any timm encoder.

        Args:
            name: any name of `timm.list_models()`; the paper's is "resnet18".
            action_dim: A, numbers in an action.
            img_size: side of the views in pixels, or (height, width): for encoders built for one size, such as ViTs.
            cifar_stem: for 32-px views, a ResNet stem that keeps their resolution.
            pretrained: load timm's weights (this downloads).
            embedder: the paper's `ActionEmbedder(action_dim, 128)` by default; `NoActions()` for the ablation.
            heads: attention heads of the aggregator (4 in the paper); must divide D + E.
            momentum: of the EMA target: a number, or a schedule of the step.
            loss: the cosine distance by default.
            timm_options: handed to `timm.create_model`: `in_chans`, `drop_path_rate`, …

        Returns:
            The model, in training mode.

        Raises:
            ValueError: an unknown name (near matches are listed), a stem that cannot be swapped, or views of a size
                that the encoder cannot take.

        Examples:
            >>> model = SeqJEPA.from_timm("vit_tiny_patch16_224", action_dim=2, img_size=32)
            >>> model.aggregator.dim
            320
        """
        encoder = timm_encoder(name, cifar_stem=cifar_stem, pretrained=pretrained, img_size=img_size, **timm_options)
        return cls.from_encoder(
            encoder,
            action_dim=action_dim,
            view_shape=_view_shape(encoder, img_size, timm_options.get("in_chans", 3)),
            heads=heads,
            embedder=embedder,
            momentum=momentum,
            loss=loss,
        )

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> SeqJEPAOutput:
        """Predict each source's last view from those before it and the actions between them.

        Args:
            views: (B, T+1, …), T ≥ 1; the last is to be predicted.
            actions: (B, T, A); `actions[:, t]` takes view t to view t+1.
            mask: (B, T) bool for sequences of several lengths, True where an observed view counts; each row needs one
                at least. The view after a row's last True is that row's target, so padding may stand before a sequence
                or after it. In training mode, batch norm still sees the padding.

        Returns:
            loss, prediction, target, state, z and the loss terms by name.

        Raises:
            ValueError: shapes, counts or devices that do not fit; an encoder that returns no vectors.
            TypeError: dtypes that do not fit.
        """
        check_sequence(views, actions)
        if views.shape[1] < 2:
            raise ValueError(
                f"Two views and one action are the least that can be predicted from; got {views.shape[1]} view."
            )
        last = None if mask is None else last_view(mask, actions)

        # The target first: what it computes with is free again before the encoder keeps its activations for backward.
        target = self.target(_take(views, None if last is None else last + 1))  # (B, D)
        z = self.encode(views[:, :-1])  # (B, T, D)
        e = self.embed(actions)  # (B, T, E)
        state = self.aggregate(z, e[:, :-1], mask)  # (B, S)
        prediction = self.predict(state, _take(e, last))  # (B, D)

        loss, terms = self.loss(prediction, target, z, mask)
        return SeqJEPAOutput(loss, prediction, target, state, z, terms)

    def encode(self, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "B T D"]:
        """Encode every view by itself: the equivariant representation z.

        Args:
            views: (B, T, …), any T from 1 up.

        Returns:
            (B, T, D).
        """
        return encode_views(self.encoder, views)

    def embed(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T E"]:
        """Embed every action by itself.

        Args:
            actions: (B, T, A), any T from 0 up.

        Returns:
            (B, T, E).
        """
        return self.embedder(actions)

    def aggregate(
        self,
        z: Float[Tensor, "B T D"],
        e: Float[Tensor, "B steps E"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """Aggregate T views and the T − 1 actions between them into one state: the invariant representation.

        Args:
            z: (B, T, D) encoded views.
            e: (B, T−1, E) embedded actions; the last view needs none: its slot is zero.
            mask: (B, T) bool, True where a view counts; the slot of a row's last such view is zero.

        Returns:
            (B, S).

        Raises:
            ValueError: shapes or counts that do not fit.
        """
        tokens = _tokens(z, e, mask)
        return self.aggregator(tokens) if mask is None else self.aggregator(tokens, mask)

    def aggregate_prefixes(
        self,
        z: Float[Tensor, "B T D"],
        e: Float[Tensor, "B steps E"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T S"]:
        """The state of the first view, of the first two, and so on: [`aggregate`][seqjepa.SeqJEPA.aggregate] of each.

        A [`CausalAggregator`][seqjepa.CausalAggregator] makes them in one pass; any other in T.

        Args:
            z: (B, T, D) encoded views.
            e: (B, T−1, E) embedded actions between them.
            mask: (B, T) bool, True where a view counts.

        Returns:
            (B, T, S): `[:, t - 1]` is the state of the first t views.

        Raises:
            ValueError: shapes or counts that do not fit.

        Examples:
            >>> import torch
            >>> model = SeqJEPA.from_timm("resnet18", action_dim=4).eval()
            >>> model.aggregate_prefixes(torch.randn(2, 5, 512), model.embed(torch.randn(2, 4, 4))).shape
            torch.Size([2, 5, 640])
        """
        aggregator = unwrap(self.aggregator)
        if isinstance(aggregator, CausalAggregator):
            tokens = _tokens(z, e, mask)
            last = torch.cat([tokens[..., : z.shape[2]], torch.zeros_like(tokens[..., z.shape[2] :])], dim=-1)
            return aggregator.prefixes(tokens, last, mask)
        ends = range(1, z.shape[1] + 1)
        states = [self.aggregate(z[:, :t], e[:, : t - 1], None if mask is None else mask[:, :t]) for t in ends]
        return torch.stack(states, dim=1)

    def predict(self, state: Float[Tensor, "B S"], e: Float[Tensor, "B E"]) -> Float[Tensor, "B D"]:
        """Predict the representation of the view that an action leads to.

        Args:
            state: (B, S) from [`aggregate`][seqjepa.SeqJEPA.aggregate].
            e: (B, E), the embedding of the action that leaves the last view.

        Returns:
            (B, D).
        """
        return self.predictor(state, e)

    def imagine(
        self,
        views: Float[Tensor, "B T *image"],
        actions: Float[Tensor, "B steps A"],
        future_actions: Float[Tensor, "B K A"],
    ) -> Float[Tensor, "B K D"]:
        """Predict K representations in a row, each prediction fed back as a view.

        Args:
            views: (B, T, …) observed views, T ≥ 1.
            actions: (B, T−1, A), between the observed views.
            future_actions: (B, K, A), K ≥ 1, from the last observed view on.

        Returns:
            (B, K, D): the representation after each future action.

        Raises:
            ValueError: shapes or counts that do not fit.

        Examples:
            >>> import torch
            >>> model = SeqJEPA.from_timm("resnet18", action_dim=4).eval()
            >>> model.imagine(torch.rand(2, 3, 3, 32, 32), torch.randn(2, 2, 4), torch.randn(2, 5, 4)).shape
            torch.Size([2, 5, 512])
        """
        check_sequence(views, actions)
        check_axes("future_actions", future_actions, "B K A")
        if future_actions.shape[1] < 1 or future_actions.shape[::2] != actions.shape[::2]:
            raise ValueError(
                "future_actions must be (B, K, A) with K of at least 1 and the B and A of actions; got shape "
                f"{tuple(future_actions.shape)} beside actions of shape {tuple(actions.shape)}."
            )
        # All actions at once, as in forward: batch norm moves once, and of one view there are none before it.
        e = self.embed(torch.cat([actions, future_actions], dim=1)).split(
            [actions.shape[1], future_actions.shape[1]], 1
        )
        return self._imagine(self.encode(views), *e)

    def imagine_from(
        self,
        z: Float[Tensor, "B T D"],
        e: Float[Tensor, "B steps E"],
        future_actions: Float[Tensor, "B K A"],
    ) -> Float[Tensor, "B K D"]:
        """[`imagine`][seqjepa.SeqJEPA.imagine] from views that are encoded already: many futures, one encoding.

        A [`CausalAggregator`][seqjepa.CausalAggregator] reads each view once, the imagined too; any other reads the
        whole sequence again at each step.

        Args:
            z: (B, T, D) encoded views, T ≥ 1.
            e: (B, T−1, E) embedded actions between them.
            future_actions: (B, K, A), K ≥ 1, from the last observed view on.

        Returns:
            (B, K, D): the representation after each future action.

        Raises:
            ValueError: shapes or counts that do not fit.

        Examples:
            >>> import torch
            >>> model = SeqJEPA.from_timm("resnet18", action_dim=4).eval()
            >>> z = model.encode(torch.rand(2, 1, 3, 32, 32))                # two sources, one view each
            >>> futures = torch.randn(2 * 8, 3, 4)                          # eight futures of each, three actions long
            >>> e = model.embed(torch.randn(2 * 8, 0, 4))                   # no actions yet
            >>> model.imagine_from(z.repeat_interleave(8, 0), e, futures).shape
            torch.Size([16, 3, 512])
        """
        check_axes("z", z, "B T D")
        check_axes("future_actions", future_actions, "B K A")
        if future_actions.shape[1] < 1 or future_actions.shape[0] != z.shape[0]:
            raise ValueError(
                "future_actions must be (B, K, A) with K of at least 1 and the B of z; got shape "
                f"{tuple(future_actions.shape)} beside z of shape {tuple(z.shape)}."
            )
        return self._imagine(z, e, self.embed(future_actions))

    def update_target(self) -> None:
        """Move the target encoder one step towards the encoder: call it after each optimiser step."""
        self.target.update(self.encoder)

    def _imagine(
        self, z: Float[Tensor, "B T D"], e: Float[Tensor, "B steps E"], ahead: Float[Tensor, "B K E"]
    ) -> Float[Tensor, "B K D"]:
        aggregator = unwrap(self.aggregator)
        tokens, cache = _tokens(z, e), None
        finished, last = tokens[:, :-1], tokens[:, -1]
        predictions: list[Tensor] = []
        for k in range(ahead.shape[1]):
            if isinstance(aggregator, CausalAggregator):
                state, cache = aggregator.step(finished, last, cache)
            else:
                state = self.aggregate(z, e)
            predictions.append(self.predict(state, ahead[:, k]))
            z, e = torch.cat([z, predictions[-1][:, None]], dim=1), torch.cat([e, ahead[:, k : k + 1]], dim=1)
            finished, last = _tokens(z[:, -2:], e[:, -1:]).unbind(1)
        return torch.stack(predictions, dim=1)


def _tokens(z: Tensor, e: Tensor, mask: Tensor | None = None) -> Tensor:
    """Views and the actions that leave them side by side, (B, T, D + E); the slot of a row's last view is zero."""
    check_axes("z", z, "B T D")
    check_axes("e", e, "B T E")
    if e.shape[2] and e.device != z.device:
        raise ValueError(f"z and e must lie on one device; got {z.device} and {e.device}. Move one: e.to(z.device).")
    if not e.shape[2]:
        e = z.new_zeros(e.shape)  # no numbers: whatever dtype and device the actions had
    elif torch.promote_types(e.dtype, z.dtype) != z.dtype:
        check_like("e", e, z)  # half precision and float32 meet in the wider one; float64 must be meant
    n, m = z.shape[1], e.shape[1]
    if m != n - 1 or z.shape[0] != e.shape[0]:
        raise ValueError(
            f"{n} views have {n - 1} actions between them; got z of shape {tuple(z.shape)} and e of shape "
            f"{tuple(e.shape)}. The action that leaves the last view goes to predict()."
        )
    slots = torch.cat([e, e.new_zeros(e.shape[0], 1, e.shape[2])], dim=1)  # (B, T, E)
    if mask is not None:
        leads_on = torch.arange(n, device=z.device) < last_view(mask, z)[:, None]
        slots = torch.where(leads_on[..., None], slots, 0)
    return torch.cat([z, slots], dim=-1)


def _take(sequence: Tensor, index: Tensor | None) -> Tensor:
    """One step of each row of a (B, T, …): the last, or the one at `index` (B,)."""
    if index is None:
        return sequence[:, -1]
    return sequence[torch.arange(sequence.shape[0], device=sequence.device), index]


def _view_shape(encoder: nn.Module, img_size: int | tuple[int, int] | None, channels: int) -> tuple[int, ...]:
    """The shape of a view that a timm encoder takes: what the caller says, else a small one that it can encode."""
    config: Any = encoder.pretrained_cfg
    full = (channels, *config["input_size"][1:])
    if img_size is not None:
        return (channels, img_size, img_size) if isinstance(img_size, int) else (channels, *img_size)
    if config.get("fixed_input_size"):
        return full
    least = max([64, *(config.get("min_input_size") or ())[1:]])
    try:
        feature_width(encoder, (channels, least, least))
    except ValueError:  # such as Inception, whose strides leave nothing of 64 pixels
        return full
    return (channels, least, least)


def _check_widths(embedder: nn.Module, aggregator: nn.Module, predictor: nn.Module) -> None:
    """Raise where two of our own parts do not fit; parts of the user's own answer for themselves."""
    if not isinstance(predictor, ConditionedPredictor):
        return
    embed_dim = int(getattr(embedder, "embed_dim", predictor.action_dim))
    if predictor.action_dim != embed_dim:
        raise ValueError(
            f"The predictor reads embedded actions {predictor.action_dim} wide; the embedder makes them {embed_dim} "
            f"wide. Build ConditionedPredictor(..., action_dim={embed_dim})."
        )
    if isinstance(aggregator, SequenceAggregator | CausalAggregator):
        if aggregator.dim != predictor.state_dim:
            raise ValueError(
                f"The predictor reads states {predictor.state_dim} wide; the aggregator makes them {aggregator.dim} "
                f"wide. Build ConditionedPredictor(state_dim={aggregator.dim}, ...)."
            )
        if aggregator.dim != predictor.dim + embed_dim:
            raise ValueError(
                f"A token is an encoder output ({predictor.dim}, what the predictor predicts) and an embedded action "
                f"({embed_dim}): {predictor.dim + embed_dim} wide; the aggregator takes {aggregator.dim}. "
                f"Build {type(aggregator).__name__}({predictor.dim + embed_dim})."
            )
