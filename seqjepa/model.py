"""SeqJEPA: the parts, put together."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_sequence, unwrap
from seqjepa._parts import (
    Target,
    check_instances,
    check_takes_mask,
    check_widths,
    parts_around,
    target_of,
    timm_view_shape,
)
from seqjepa._tokens import step_of, tokens_of
from seqjepa.aggregator import last_view
from seqjepa.causal import CausalAggregator
from seqjepa.encoders import encode_views, timm_encoder
from seqjepa.hub import PretrainedModule
from seqjepa.loss import SeqJEPALoss
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
        aggregator: tokens (B, T, D + E) → (B, S). A mask (B, T) is its second argument where the model is called with
            one, and only there: for sequences of one length it need not take any.
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
        check_instances(
            encoder=encoder, embedder=embedder, aggregator=aggregator, predictor=predictor, target=target, loss=loss
        )
        check_widths(embedder, aggregator, predictor)
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
        aggregator: nn.Module | None = None,
        predictor: nn.Module | None = None,
        heads: int = 4,
        momentum: Momentum = 0.996,
        target: Target | None = None,
        loss: nn.Module | None = None,
    ) -> SeqJEPA:
        """The paper's model around your own encoder; its width is found by encoding one blank view.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: A, numbers in an action.
            view_shape: shape of one view, (C, H, W) for images.
            embedder: the paper's `ActionEmbedder(action_dim, 128)` by default; `NoActions()` for the ablation.
            aggregator: the paper's `SequenceAggregator(D + E)` by default; or any (B, T, D + E) → (B, S). S is found
                by aggregating one blank sequence.
            predictor: the paper's `ConditionedPredictor` of hidden width 1024 by default; or any (B, S), (B, E) →
                (B, D).
            heads: attention heads of the paper's aggregator (4 there); must divide D + E.
            momentum: of the EMA target: a number, or a schedule of the step.
            target: instead of the EMA target: a module, or what makes one of the encoder, such as the class
                `StopGradientTarget`.
            loss: the cosine distance by default.

        Returns:
            The model, of the parts that are given and the paper's for the rest.

        Raises:
            ValueError: an encoder that returns no vectors, or whose D + E does not split into the heads: then give
                `heads`, or an embedder of another `embed_dim`; an aggregator or a predictor that does not fit D and E.
            TypeError: a class for a part; an embedder that does not say its `embed_dim`.

        Examples:
            >>> import torch
            >>> from seqjepa import CausalAggregator, OnlineTarget
            >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 64))
            >>> model = SeqJEPA.from_encoder(encoder, action_dim=2, view_shape=(3, 8, 8))
            >>> model.aggregator.dim
            192
            >>> model = SeqJEPA.from_encoder(
            ...     encoder, action_dim=2, view_shape=(3, 8, 8), aggregator=CausalAggregator(192), target=OnlineTarget
            ... )
            >>> model(torch.rand(4, 3, 3, 8, 8), torch.randn(4, 2, 2)).state.shape
            torch.Size([4, 192])
        """
        embedder, aggregator, predictor = parts_around(
            encoder, view_shape, action_dim, embedder, aggregator, predictor, heads
        )
        return cls(
            encoder=encoder,
            embedder=embedder,
            aggregator=aggregator,
            predictor=predictor,
            target=target_of(encoder, target, momentum),
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
        aggregator: nn.Module | None = None,
        predictor: nn.Module | None = None,
        heads: int = 4,
        momentum: Momentum = 0.996,
        target: Target | None = None,
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
            embedder: this and the parts below as for [`from_encoder`][seqjepa.SeqJEPA.from_encoder].
            aggregator: instead of the paper's.
            predictor: instead of the paper's.
            heads: attention heads of the paper's aggregator (4 there); must divide D + E.
            momentum: of the EMA target: a number, or a schedule of the step.
            target: instead of the EMA target: what makes one of the encoder, such as the class `StopGradientTarget`.
            loss: the cosine distance by default.
            timm_options: handed to `timm.create_model`: `in_chans`, `drop_path_rate`, …

        Returns:
            The model, in training mode.

        Raises:
            ValueError: an unknown name (near matches are listed), a stem that cannot be swapped, views of a size that
                the encoder cannot take, or parts that do not fit it.

        Examples:
            >>> model = SeqJEPA.from_timm("vit_tiny_patch16_224", action_dim=2, img_size=32)
            >>> model.aggregator.dim
            320
        """
        encoder = timm_encoder(name, cifar_stem=cifar_stem, pretrained=pretrained, img_size=img_size, **timm_options)
        return cls.from_encoder(
            encoder,
            action_dim=action_dim,
            view_shape=timm_view_shape(encoder, img_size, timm_options.get("in_chans", 3)),
            embedder=embedder,
            aggregator=aggregator,
            predictor=predictor,
            heads=heads,
            momentum=momentum,
            target=target,
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
            TypeError: dtypes that do not fit; a mask for an aggregator that takes none.
        """
        check_sequence(views, actions)
        if views.shape[1] < 2:
            raise ValueError(
                f"Two views and one action are the least that can be predicted from; got {views.shape[1]} view."
            )
        last = None if mask is None else last_view(mask, actions)

        # The target first: what it computes with is free again before the encoder keeps its activations for backward.
        target = self.target(step_of(views, None if last is None else last + 1))  # (B, D)
        z = self.encode(views[:, :-1])  # (B, T, D)
        e = self.embed(actions)  # (B, T, E)
        state = self.aggregate(z, e[:, :-1], mask)  # (B, S)
        prediction = self.predict(state, step_of(e, last))  # (B, D)

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
            TypeError: a mask for an aggregator that takes none.
        """
        tokens = tokens_of(z, e, mask)
        if mask is None:
            return self.aggregator(tokens)
        check_takes_mask(self.aggregator)
        return self.aggregator(tokens, mask)

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
            tokens = tokens_of(z, e, mask)
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
        tokens, cache = tokens_of(z, e), None
        finished, last = tokens[:, :-1], tokens[:, -1]
        predictions: list[Tensor] = []
        for k in range(ahead.shape[1]):
            if isinstance(aggregator, CausalAggregator):
                state, cache = aggregator.step(finished, last, cache)
            else:
                state = self.aggregate(z, e)
            predictions.append(self.predict(state, ahead[:, k]))
            z, e = torch.cat([z, predictions[-1][:, None]], dim=1), torch.cat([e, ahead[:, k : k + 1]], dim=1)
            finished, last = tokens_of(z[:, -2:], e[:, -1:]).unbind(1)
        return torch.stack(predictions, dim=1)
