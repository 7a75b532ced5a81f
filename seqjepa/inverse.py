"""The inverse model: which action led from one view to the next, for data whose actions nobody wrote down.

```
a_t = bottleneck(MLP([z_t ; z_{t+1}]))
```

An action inferred so has seen the view that it is to predict. Without a bottleneck it can carry that view instead of
what changed, and a world model then looks perfect and knows nothing; so a bottleneck says how much it may carry.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_mask, check_tensor, like_weights, weight_of
from seqjepa.predictor import ConditionedPredictor

__all__ = ["GaussianBottleneck", "InverseModel", "InverseOutput", "VectorQuantizer"]

SPREAD = 0.4  # of codes at first: that of what an untrained InverseModel hands over, so that most are near some


class InverseOutput(NamedTuple):
    """Inferred actions, and what their bottleneck asks for.

    Attributes:
        actions: (B, T, A), with gradient.
        loss: () scalar with gradient, weighted: add it to the model's; 0 without a bottleneck.
        terms: its parts by name, () each, detached, before their weights.
    """

    actions: Float[Tensor, "B T A"]
    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]


class InverseModel(nn.Module):
    """Infer the action between two views from what the encoder made of them: an MLP on [z_t ; z_{t+1}].

    Two uses. *Latent actions*, where the true ones are unknown: `actions` of [`infer`][seqjepa.InverseModel.infer] take
    their place in the model, and `loss` is added to the model's. *Inverse dynamics*, where they are known: without a
    bottleneck, with its error as a regulariser that keeps in z what actions change.

    Each step of each row is computed by itself: layer norm, no statistics of the batch.

    Args:
        dim: D, width of the encoder's outputs, at least 1.
        action_dim: A, numbers in an inferred action; with 0 the model is told nothing, as by
            [`NoActions`][seqjepa.NoActions].
        bottleneck: [`GaussianBottleneck`][seqjepa.GaussianBottleneck], [`VectorQuantizer`][seqjepa.VectorQuantizer],
            None, or a module of your own: `build(action_dim)` returns how many numbers it reads for each action, and
            its forward takes these, (B, T, n), and a mask to an [`InverseOutput`][seqjepa.inverse.InverseOutput].
        hidden_dim: width of the hidden layers, at least 1.
        depth: hidden layers, each linear, layer norm, ReLU; at least 1.

    Shapes:
        z (B, T, D), z_next (B, T, D) → (B, T, A); T may be 0.

    Raises:
        ValueError: sizes out of range; another rank, width or device; z and z_next of different shapes.
        TypeError: a higher precision than the weights'.

    Source:
        Schmidt & Jiang 2024 (arXiv 2312.10812), LAPO; in latent space Garrido et al. 2026 (arXiv 2601.05230).

    Examples:
        >>> import torch
        >>> inverse = InverseModel(dim=512, action_dim=3, bottleneck=GaussianBottleneck(beta=1e-2))
        >>> z = torch.randn(8, 4, 512)
        >>> a = inverse(z[:, :-1], z[:, 1:])
        >>> actions, loss, terms = inverse.infer(z[:, :-1], z[:, 1:])
        >>> a.shape, loss.requires_grad, list(terms)
        (torch.Size([8, 3, 3]), True, ['kl'])

        With true actions, the inverse-dynamics regulariser: the error of their local coordinates.

        >>> from seqjepa.groups import Rotation3D
        >>> group, turns = Rotation3D(), Rotation3D.random(8, 3)
        >>> inverse = InverseModel(dim=512, action_dim=group.local_dim)
        >>> error = torch.nn.functional.mse_loss(inverse(z[:, :-1], z[:, 1:]), group.log(turns))
        >>> error.backward()
    """

    bottleneck: Any

    def __init__(
        self,
        dim: int,
        action_dim: int,
        bottleneck: nn.Module | None = None,
        *,
        hidden_dim: int = 512,
        depth: int = 2,
    ) -> None:
        super().__init__()
        if dim < 1 or action_dim < 0 or hidden_dim < 1 or depth < 1:
            raise ValueError(
                "dim, hidden_dim and depth must be at least 1 and action_dim at least 0; got "
                f"dim={dim}, action_dim={action_dim}, hidden_dim={hidden_dim}, depth={depth}."
            )
        self.dim, self.action_dim, self.hidden_dim, self.depth = dim, action_dim, hidden_dim, depth
        self.bottleneck = bottleneck
        width = action_dim if bottleneck is None else self.bottleneck.build(action_dim)
        self.network = (
            ConditionedPredictor(dim, dim, width, hidden_dim, depth=depth, norm="layer") if action_dim else None
        )

    def forward(self, z: Float[Tensor, "B T D"], z_next: Float[Tensor, "B T D"]) -> Float[Tensor, "B T A"]:
        """The action of every step; what its bottleneck asks for is with [`infer`][seqjepa.InverseModel.infer]."""
        return self.infer(z, z_next).actions

    def infer(
        self, z: Float[Tensor, "B T D"], z_next: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None
    ) -> InverseOutput:
        """The action of every step, with the loss of its bottleneck and the terms by name.

        Args:
            z: (B, T, D), the views that actions leave.
            z_next: (B, T, D), those they lead to; the last from the target encoder, which gives no gradient.
            mask: (B, T) bool, True where a step counts in the loss: the mask of the views that actions leave, the same
                that the model takes. The other actions mean nothing, and what stands there is never looked at.

        Returns:
            actions, loss and terms.

        Raises:
            ValueError: another rank, width, shape or device.
            TypeError: a higher precision than the weights'; a mask that is not bool.
        """
        check_axes("z", z, "B T D")
        check_axes("z_next", z_next, "B T D")
        if z.shape != z_next.shape or z.shape[2] != self.dim:
            raise ValueError(
                f"z and z_next are the two ends of each step, (B, T, {self.dim}) both; got shapes {tuple(z.shape)} and "
                f"{tuple(z_next.shape)}. Of one sequence take z[:, :-1] and z[:, 1:]."
            )
        if mask is not None:
            check_mask(mask, z)
        none = z.new_zeros((), dtype=torch.promote_types(z.dtype, torch.float32))
        if self.network is None:
            return InverseOutput(z[..., :0], none, {})
        weight = weight_of(self.network)
        z, z_next = like_weights("z", z, weight), like_weights("z_next", z_next, weight)
        if mask is not None:  # before the first layer: NaN in the padding would come back in its gradient
            z, z_next = (torch.where(mask[..., None], x, 0) for x in (z, z_next))
        raw = self.network(z.flatten(0, 1), z_next.flatten(0, 1)).unflatten(0, z.shape[:2])
        return InverseOutput(raw, none, {}) if self.bottleneck is None else self.bottleneck(raw, mask)

    @staticmethod
    def exchange(actions: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "B *rest"]:
        """Give each row its neighbour's actions: row 2i those of row 2i+1, and the other way round.

        For batches whose neighbours went through the same transformations: what predicts the neighbour's next view as
        well as its own holds the transformation, and nothing of the view.

        Args:
            actions: (B, …), B even.

        Returns:
            (B, …).

        Raises:
            ValueError: an odd batch.

        Source:
            Yu et al. 2025 (arXiv 2501.08712), STL.

        Examples:
            >>> import torch
            >>> InverseModel.exchange(torch.tensor([[1.0], [2.0], [3.0], [4.0]])).flatten()
            tensor([2., 1., 4., 3.])
        """
        check_tensor("actions", actions)
        if actions.ndim < 1 or actions.shape[0] % 2:
            raise ValueError(
                "Rows are exchanged in pairs, so their number must be even; got actions of shape "
                f"{tuple(actions.shape)}. Drop the last row, or draw an even batch."
            )
        return actions.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


class GaussianBottleneck(nn.Module):
    """A noisy action: a ~ N(μ, σ²), held near the standard normal by a KL term.

    `KL = ½ Σ_i (μ_i² + σ_i² − log σ_i² − 1)`, summed over the A numbers, the mean over steps, in nats. It bounds how
    much an action tells of the two views on average: ln 2 is one bit.

    In training mode an action is a draw, from torch's own generator on the device; in eval mode it is μ.

    Args:
        beta: weight of the KL beside a distance of weight 1, at least 0. With 0, or very little, σ shrinks until the
            noise hides nothing, and the next view leaks. With too much an action says nothing.

    Shapes:
        μ and log σ² (B, T, 2A), mask (B, T) bool or None → actions (B, T, A), loss (), term `kl` (). The KL is computed
        in float32 or wider.

    Raises:
        ValueError: a beta below 0.

    Source:
        Kingma & Welling 2014 (arXiv 1312.6114); Higgins et al. 2017 for beta.

    Examples:
        >>> import torch
        >>> bottleneck = GaussianBottleneck(beta=0.5)
        >>> mean, log_variance = torch.full((8, 3, 2), 2.0), torch.zeros(8, 3, 2)
        >>> out = bottleneck(torch.cat([mean, log_variance], dim=-1))
        >>> out.actions.shape, out.loss.item(), out.terms["kl"].item()               # ½ (2² + 2²) nats
        (torch.Size([8, 3, 2]), 2.0, 4.0)
        >>> torch.equal(bottleneck.eval()(torch.cat([mean, log_variance], dim=-1)).actions, mean)
        True
    """

    def __init__(self, beta: float = 1e-2) -> None:
        super().__init__()
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta, the weight of the KL, must be at least 0 and finite; got {beta}.")
        self.beta = beta

    def build(self, action_dim: int) -> int:
        """How many numbers it reads for an action: a mean and a log-variance for each of A."""
        return 2 * action_dim

    def forward(self, raw: Float[Tensor, "B T twice_A"], mask: Bool[Tensor, "B T"] | None = None) -> InverseOutput:
        """Draw the actions, and weigh how far they are from noise."""
        mean, log_variance = raw.to(torch.promote_types(raw.dtype, torch.float32)).chunk(2, dim=-1)
        actions = mean
        if self.training:
            actions = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = _mean((mean.square() + log_variance.exp() - log_variance - 1).sum(-1) / 2, mask)
        return InverseOutput(actions.to(raw.dtype), self.beta * kl, {"kl": kl.detach()})


class VectorQuantizer(nn.Module):
    """A discrete action: each chunk of it is one of a few learnt codes, the nearest.

    An action can then tell of the two views `chunks · log(codes)` nats at most. Chunks share one codebook, which keeps
    more codes in use than a codebook each.

    The action has the value of its codes and the gradient of what was quantised (straight-through), so codes learn from
    this loss alone: `mean ‖sg(x) − c‖² + commitment · mean ‖x − sg(c)‖²`, over all numbers.

    Args:
        codes: how many a chunk chooses from, at least 1.
        chunks: how many an action is cut into; must divide A.
        commitment: weight of what draws the network to its codes, at least 0.

    Shapes:
        x (B, T, A), mask (B, T) bool or None → actions (B, T, A), loss (), terms `commitment`, the mean squared
        distance to the codes, and `perplexity`, () each. The perplexity is how many codes are in use, 1 … codes, by the
        entropy of this batch; one that falls to 1 is a codebook that collapsed.

    Raises:
        ValueError: settings out of range; chunks that do not divide A; use before an
            [`InverseModel`][seqjepa.InverseModel] has built it.

    Source:
        van den Oord et al. 2017 (arXiv 1711.00937); for latent actions Schmidt & Jiang 2024 (arXiv 2312.10812).

    Examples:
        >>> import torch
        >>> inverse = InverseModel(dim=16, action_dim=8, bottleneck=VectorQuantizer(codes=6, chunks=4))
        >>> z = torch.randn(32, 4, 16)
        >>> actions, loss, terms = inverse.infer(z[:, :-1], z[:, 1:])
        >>> len(actions.reshape(-1, 2).unique(dim=0)) <= 6, list(terms)
        (True, ['commitment', 'perplexity'])
    """

    codebook: nn.Parameter | None

    def __init__(self, codes: int, chunks: int = 1, *, commitment: float = 0.25) -> None:
        super().__init__()
        if codes < 1 or chunks < 1:
            raise ValueError(f"It takes 1 code and 1 chunk at least; got codes={codes} and chunks={chunks}.")
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment is a weight, at least 0 and finite; got {commitment}.")
        self.codes, self.chunks, self.commitment = codes, chunks, commitment
        self.register_parameter("codebook", None)

    def build(self, action_dim: int) -> int:
        """Make codes for actions of A numbers; returns how many it reads for each: A."""
        if action_dim < 1 or action_dim % self.chunks:
            raise ValueError(
                f"An action is cut into {self.chunks} chunks of one width, so their number must divide action_dim, at "
                f"least 1; got {action_dim}. Take action_dim={self.chunks * max(1, -(-action_dim // self.chunks))}."
            )
        width = action_dim // self.chunks
        if self.codebook is None:
            self.codebook = nn.Parameter(SPREAD * torch.randn(self.codes, width))
        elif self.codebook.shape[1] != width:
            raise ValueError(
                f"The codes are {self.codebook.shape[1]} wide, built for another InverseModel; got action_dim="
                f"{action_dim}, which wants {width}. Give each its own VectorQuantizer({self.codes}, {self.chunks})."
            )
        return action_dim

    def forward(self, raw: Float[Tensor, "B T A"], mask: Bool[Tensor, "B T"] | None = None) -> InverseOutput:
        """Take each chunk to its nearest code."""
        if self.codebook is None:
            raise ValueError(
                "The codes are as wide as an action's chunks, which InverseModel(..., bottleneck=…) tells; got none. "
                "Hand this part to an InverseModel, or call build(action_dim) first."
            )
        precise = torch.promote_types(raw.dtype, torch.float32)
        x, codebook = rearrange(raw.to(precise), "b t (c w) -> b t c w", c=self.chunks), self.codebook.to(precise)
        with torch.no_grad():
            nearest = (x[..., None, :] - codebook).square().sum(-1).argmin(-1)  # (B, T, chunks)
            used = (nearest[..., None] == torch.arange(self.codes, device=x.device)).to(precise)
            share = _mean(used.mean(2), mask)  # (codes,)
        code = codebook[nearest]
        to_codes = _mean((x.detach() - code).square().mean((2, 3)), mask)
        to_network = _mean((x - code.detach()).square().mean((2, 3)), mask)
        actions = code.detach() + (x - x.detach())  # straight-through: the value to the bit
        terms = {"commitment": to_network.detach(), "perplexity": torch.special.entr(share).sum().exp()}
        loss = to_codes + self.commitment * to_network
        return InverseOutput(rearrange(actions, "b t c w -> b t (c w)").to(raw.dtype), loss, terms)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the steps that count, (B, T, …) → (…); 0 where none does."""
    by_step = values.flatten(0, 1).movedim(0, -1)
    counts = by_step.new_ones(by_step.shape[-1]) if mask is None else mask.flatten().to(by_step.dtype)
    return (by_step * counts).sum(-1) / counts.sum().clamp(min=1)
