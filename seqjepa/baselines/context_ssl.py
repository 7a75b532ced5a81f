"""ContextSSL: views read by a transformer in a context of other pairs, which tells what actions do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_axes
from seqjepa._modes import fresh_casts
from seqjepa.actions import RawActions
from seqjepa.baselines._base import BaselineOutput, Predictive, check_weights, embedding, setting, told
from seqjepa.baselines.contrast import NTXent, over_pairs
from seqjepa.baselines.in_context import InContext
from seqjepa.baselines.pair_transformer import PairTransformer, after_context, causal_pairs, pair_tokens, token
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.encoders import feature_width
from seqjepa.functional import mse_distance

__all__ = ["ContextSSL"]

QUERIES = 512  # read at a time after one context


class ContextSSL(Predictive):
    """Views read in a context of other sources' pairs, which show what actions do; the readings of a pair are to agree.

    A batch is cut into contexts of K pairs, in order. Each pair is two tokens, [z_0 ; a] and [z_1 ; 0], and a causal
    transformer without positions reads o at each (see [`PairTransformer`][seqjepa.baselines.PairTransformer]): a token
    sees the pairs before its own, and not the other token of its pair. With o_0 and o_1 of the first and the second
    tokens of the whole batch:

    `L = NTX(o_0, o_1; τ) + w ½ Σ_i mse(MLP(o_i / ‖o_i‖), pose of view 1)`.

    The second term regresses *absolute* poses, which no other method of the table is told: with it (`settings="paper"`)
    hand them over, `method(views, actions, poses=…)`. Without it, w = 0, all methods are told as much.

    `encode` is the encoder alone. To read a view in a context, after training:
    `reader = method.in_context(views, actions)` of pairs of training sources, then
    `evaluate(reader.contextual, train, test)` measures o, and `evaluate(reader, train, test)` z, with retrieval by what
    is read in that context. The method's own `contextual`, `predict` and `target` read without context, as pairs that
    come first in theirs. Several layers are not blind to order altogether: what a pair of the context is taken for
    depends on the pairs before it. Published: top-1 80.4 %, R² 0.74, which is ContextSSL's own figure, pooled over
    outputs where the others are averaged.

    Left out: the initialisation of GPT-2 and the clamp of cosines at 0, beyond which no gradient is left.

    Args:
        encoder: (N, …) → (N, D).
        transformer: tokens (C, N, D + E) → (C, N, P), with `attend`, `hide` and `generator`.
        embedder: actions (B, K, A) → (B, K, E); raw ones as published: `RawActions(A)`.
        context_pairs: K; must divide the batch.
        temperature: τ, above 0.
        hide: the probability in [0, 1] with which a token overlooks a pair before it, in training mode.
        parts: sizes of the parts of an action, such as (4, 2) for rotation and colour. In training mode one is drawn a
            batch, and the numbers of the others are told, and asked for, as zeros. None: actions are told whole.
        pose_head: the MLP from o to absolute poses, or None.
        pose_weight: w, at least 0; without effect where there is no head.
        pairs: which views make a pair; the first and the second by default.
        generator: of the draws of parts and of what is overlooked, on the CPU.

    Shapes:
        views (B, T+1, …), actions (B, T, A), poses (B, T+1, A), absolute, of each view.

    Raises:
        ValueError: a batch that K does not divide; views, actions or poses that do not fit; poses without a head, or a
            head without poses; a mask; settings out of their range.

    Source:
        Gupta et al. 2024 (arXiv 2405.18193).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = ContextSSL.from_encoder(
        ...     encoder, action_dim=4, view_shape=(3, 8, 8), widths=(32, 16), context_pairs=4)
        >>> views, actions = torch.rand(8, 2, 3, 8, 8), torch.randn(8, 1, 4)
        >>> out = method(views, actions)                                               # two contexts of four pairs
        >>> out.z.shape, out.prediction.shape, list(out.terms)
        (torch.Size([8, 2, 16]), torch.Size([8, 16]), ['contrast'])
        >>> reader = method.eval().in_context(views[:3], actions[:3])                  # three pairs: six tokens
        >>> reader.contextual(views).shape
        torch.Size([8, 2, 16])
    """

    def __init__(
        self,
        encoder: nn.Module,
        transformer: nn.Module,
        embedder: nn.Module,
        *,
        context_pairs: int = 64,
        temperature: float = 0.1,
        hide: float = 0.9,
        parts: Sequence[int] | None = None,
        pose_head: nn.Module | None = None,
        pose_weight: float = 5.0,
        pairs: ViewPairs | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(encoder, embedder, pairs)
        check_weights(pose_weight=pose_weight)
        if context_pairs < 1:
            raise ValueError(f"context_pairs is the number of pairs of a context, at least 1; got {context_pairs}.")
        if not 0 <= hide <= 1:
            raise ValueError(f"hide is a probability, in [0, 1]; got {hide}.")
        if parts is not None and (not parts or min(parts) < 1):
            raise ValueError(f"parts are the sizes of an action's parts, each at least 1; got {tuple(parts)}.")
        self.transformer, self.pose_head = transformer, pose_head
        self.contrast = NTXent(temperature)
        self.context_pairs, self.hide, self.parts = context_pairs, hide, None if parts is None else tuple(parts)
        self.pose_weight, self.generator = pose_weight, generator

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["paper", "comparison"] = "comparison",
        widths: tuple[int, int] | None = None,
        embedder: nn.Module | None = None,
        context_pairs: int = 64,
        parts: Sequence[int] | None = None,
        pairs: ViewPairs | None = None,
        generator: torch.Generator | None = None,
    ) -> ContextSSL:
        """The method around your own encoder.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: A, numbers in an action, and in a pose; needed.
            view_shape: shape of one view.
            settings: "comparison", without poses, as all other methods: w = 0; "paper", its own: w = 5, with a head
                P→W/2→W/2→A. Both: W = 2048, P = D, three layers of four heads, τ = 0.1, nine pairs of ten overlooked.
                The seq-JEPA release has no ContextSSL, so the comparison's settings are ours.
            widths: W and P, instead; 4 must divide W.
            embedder: `RawActions(action_dim)` by default; `NoActions()` for the ablation.
            context_pairs: K; must divide the batch.
            parts: sizes of the parts of an action, of which one is drawn a batch.
            pairs: which views make a pair.
            generator: of the draws, on the CPU.
        """
        poses = setting(settings, {"comparison": False, "paper": True})
        size, dim = told(action_dim, cls.__name__), feature_width(encoder, view_shape)
        width, out = widths or (2048, dim)
        embedder, embed_dim = embedding(RawActions(size) if embedder is None else embedder, size, cls.__name__)
        transformer = PairTransformer(dim + embed_dim, width, out)
        return cls(
            encoder,
            transformer,
            embedder,
            context_pairs=context_pairs,
            parts=parts,
            pose_head=_mlp(out, width // 2, size) if poses else None,
            pairs=pairs,
            generator=generator,
        )

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
        poses: Float[Tensor, "B views A"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; a mask is refused."""
        self._checked(views, actions, mask)
        self._check_batch(views, actions, poses)
        paired = self.pairs(views, actions)
        part = self._drawn_part(actions.shape[-1])
        z = self.encode(paired.views)  # (B, V, D)
        e = self.embed(_only(part, paired.actions))  # (B, K, E)
        first, second = self._read_batch(z[:, paired.first], e, z[:, paired.second])  # (B, K, P) each
        loss = over_pairs(self.contrast, first, second)
        terms = {"contrast": loss.detach()}
        if self.pose_head is not None and poses is not None:
            pose = self._pose_error(first, second, paired.of(poses)[:, paired.second], part)
            loss = loss + self.pose_weight * pose
            terms["pose"] = pose.detach()
        return BaselineOutput(loss, z, terms, first.flatten(0, 1), second.detach().flatten(0, 1))

    def predict(self, state: Float[Tensor, "B D"], e: Float[Tensor, "B E"]) -> Float[Tensor, "B P"]:
        """What is read at a first token, without context: what the second is to be."""
        return self.read(token(state, e))

    def target(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B P"]:
        """What is read at a second token, without context and without gradient."""
        with torch.no_grad(), fresh_casts(views.device):
            return self.read(self.second_tokens(views[:, None]))

    def contextual(self, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "B T P"]:
        """What is read of each view by itself, without context and without an action, at length 1."""
        return F.normalize(self.read(self.second_tokens(views)), dim=-1).unflatten(0, views.shape[:2])

    def in_context(self, views: Float[Tensor, "C 2 *image"], actions: Float[Tensor, "C 1 A"]) -> InContext:
        """The method as it reads after C pairs; see [`InContext`][seqjepa.baselines.InContext].

        Args:
            views: (C, 2, …), pairs of training sources, each of another; 63 as published.
            actions: (C, 1, A), between them. Zeros for the numbers that the reading is to be invariant to.
        """
        return InContext(self, views, actions)

    def second_tokens(self, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "N S"]:
        """Views as the second tokens of pairs, [z ; 0]."""
        z = self.encode(views).flatten(0, 1)
        return token(z, z.new_zeros(len(z), self.embedder.embed_dim))

    def read(
        self, tokens: Float[Tensor, "N S"], context: Float[Tensor, "tokens S"] | None = None
    ) -> Float[Tensor, "N P"]:
        """O at each token by itself, after the tokens of a context or without: no token sees another."""
        if context is None:
            return self.transformer(tokens[:, None])[:, 0]
        rows = []
        for some in tokens.split(QUERIES):
            attend = after_context(len(context) // 2, len(some), tokens.device)
            rows.append(self.transformer(torch.cat([context, some])[None], attend)[0, len(context) :])
        return torch.cat(rows)

    def _read_batch(
        self, z0: Float[Tensor, "B K D"], e: Float[Tensor, "B K E"], z1: Float[Tensor, "B K D"]
    ) -> list[Float[Tensor, "B K P"]]:
        """O of the first and of the second tokens; where a source has several pairs, one of each makes a batch."""
        tokens = pair_tokens(z0, e, z1).transpose(0, 1)  # (K, B, 2, S)
        contexts = tokens.reshape(-1, 2 * self.context_pairs, tokens.shape[-1])
        hide = self.hide if self.training else 0.0
        attend = causal_pairs(self.context_pairs, tokens.device)
        o = self.transformer(contexts, attend, hide=hide, generator=self.generator)
        return list(o.reshape(*tokens.shape[:3], -1).transpose(0, 1).unbind(2))

    def _pose_error(self, first: Tensor, second: Tensor, poses: Tensor, part: slice) -> Float[Tensor, ""]:
        """Of both tokens, in the numbers that were told."""
        assert self.pose_head is not None
        guesses = self.pose_head(F.normalize(torch.stack([first, second]), dim=-1))  # (2, B, K, A)
        return mse_distance(guesses[..., part], poses[..., part].expand_as(guesses[..., part])).mean()

    def _drawn_part(self, size: int) -> slice:
        """The numbers of an action that are told in this batch."""
        if self.parts is None or not self.training:
            return slice(0, size)
        drawn = int(torch.randint(len(self.parts), (), generator=self.generator, device="cpu"))
        return slice(sum(self.parts[:drawn]), sum(self.parts[: drawn + 1]))

    def _check_batch(self, views: Tensor, actions: Tensor, poses: Tensor | None) -> None:
        sources, k = len(views), self.context_pairs
        if sources % k:
            fits = next(n for n in range(min(k, sources), 0, -1) if sources % n == 0)
            raise ValueError(
                f"A batch is cut into contexts of {k} pairs; got {sources} sources, of which {sources % k} are left "
                f"over. Use a batch that {k} divides, and drop_last in the loader"
                + (f"; or build with context_pairs={fits}." if fits > 1 else ".")
            )
        if self.parts is not None and sum(self.parts) != actions.shape[-1]:
            raise ValueError(
                f"parts={self.parts} are {sum(self.parts)} numbers in all; an action has {actions.shape[-1]}. Give "
                "the sizes of all parts."
            )
        if (poses is None) != (self.pose_head is None):
            came = "poses=None beside one." if poses is None else "poses without one. Build with settings='paper'."
            raise ValueError(f"Poses are regressed by a head: give both or neither; got {came}")
        if poses is not None:
            check_axes("poses", poses, "B T A")
            if poses.shape != (*views.shape[:2], actions.shape[-1]):
                raise ValueError(
                    f"Each of {views.shape[1]} views has a pose of {actions.shape[-1]} numbers; got poses of shape "
                    f"{tuple(poses.shape)}, beside {sources} sources."
                )


def _only(part: slice, actions: Float[Tensor, "B K A"]) -> Float[Tensor, "B K A"]:
    """The actions with all numbers but those of a part at zero."""
    kept = torch.zeros_like(actions)
    kept[..., part] = actions[..., part]
    return kept


def _mlp(dim: int, hidden: int, out: int) -> nn.Module:
    """Two hidden layers without a norm."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )
