"""Objectives to add to `out.loss`: more to learn from a sequence that is loaded already.

| | predicts | from |
|---|---|---|
| `out.loss` | the last view | all before it and their actions |
| [`pair_loss`][seqjepa.pair_loss] | another view of the sequence | each observed view alone and the composed action |
| [`rollout_loss`][seqjepa.rollout_loss] | views further ahead | the observed ones and the model's own predictions |

The model is an argument: anything with the methods of [`SeqJEPA`][seqjepa.SeqJEPA]. Under DistributedDataParallel and
`fully_shard` call them inside a forward of your own, as `Paired` does in the example of `pair_loss`: of what is
computed outside a wrapper's forward the wrapper knows nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_sequence, unwrap
from seqjepa.aggregator import last_view
from seqjepa.groups import Group
from seqjepa.loss import LossOutput
from seqjepa.target import OnlineTarget, StopGradientTarget
from seqjepa.types import SeqJEPAOutput

__all__ = ["pair_loss", "random_observed", "rollout_loss"]


def pair_loss(
    model: Any,
    out: SeqJEPAOutput,
    views: Float[Tensor, "B views *image"],
    actions: Float[Tensor, "B T A"],
    group: Group,
    *,
    mask: Bool[Tensor, "B T"] | None = None,
    generator: torch.Generator | None = None,
) -> LossOutput:
    """Each observed view alone predicts another view of its sequence, by the action that leads there.

    ```
    mean over t = 1 … T    distance(predictor([aggregator([z_t ; 0]) ; e(a_t→s)]), target encoder(view s)),
    s = t + k, counted round the T+1 views,    a_t→s = (a_1 ∘ … ∘ a_t−1)⁻¹ ∘ (a_1 ∘ … ∘ a_s−1)
    ```

    Every pair of views that is loaded becomes a pair to learn from: to say what a view looks like after any action, z
    has to hold what the action moves. It let all axes of a rotation into z, not only the first; see
    [what decides it](../results.md#what-decides-it). With [`NoActions`][seqjepa.NoActions] there is nothing to tell
    the pairs apart, and what is left is invariance from one view.

    k is drawn from 1 … T once a batch. Each view is then a source at most once and a target at most once in every row,
    the pairs are picked without waiting for a GPU, and over many batches each pair comes equally often. A draw for each
    row would have the same mean and a little less noise; that each view predicts *all* others was no better, at T times
    the cost.

    The observed views are not encoded again: z comes from `out`. The target encodes them too, but for a
    [`StopGradientTarget`][seqjepa.StopGradientTarget] and an [`OnlineTarget`][seqjepa.OnlineTarget], whose target is z
    itself. In training mode the batch norms of embedder, predictor and target move once more.

    Args:
        model: with `embed`, `aggregate`, `predict`, `target`, and a `loss` that has a `distance`.
        out: what the model's forward made of these views, actions and mask.
        views: (B, T+1, …), T ≥ 1.
        actions: (B, T, A), elements of the group.
        group: composes the actions.
        mask: (B, T) bool, as in the model's forward. A pair counts where both of its views do: those of padding are
            left out of the mean, whose value is 0 where none is left.
        generator: of the draw, on any device; by default torch's own, where the views lie. A graph of `torch.compile`
            takes no generator: leave it out there.

    Returns:
        The loss, to be added to `out.loss` with a weight of yours, and its term `pairs`. The mean is over the pairs of
        this process; processes may draw differently.

    Raises:
        ValueError: shapes that do not fit; a group that does not fit the actions; the output of other views.
        TypeError: a model whose loss has no distance.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> from seqjepa.groups import Rotation3D
        >>> class Paired(SeqJEPA):  # its forward holds all that is learnt from, whoever wraps it
        ...     def forward(self, views, actions, mask=None):
        ...         out = super().forward(views, actions, mask)
        ...         loss, terms = pair_loss(self, out, views, actions, Rotation3D(), mask=mask)
        ...         return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)
        >>> model = Paired.from_timm("resnet18", action_dim=4, cifar_stem=True)
        >>> poses = torch.stack([Rotation3D.random(4) for _ in range(2)])
        >>> out = model(torch.rand(2, 4, 3, 32, 32), Rotation3D().actions(poses))
        >>> list(out.terms)
        ['distance', 'pairs']
    """
    check_sequence(views, actions)
    if group.dim != actions.shape[2]:
        raise ValueError(
            f"The group's actions have {group.dim} numbers; got actions of shape {tuple(actions.shape)}. Give the "
            "group that they are elements of."
        )
    if out.z.shape[:2] != actions.shape[:2]:
        raise ValueError(
            f"out must be what the model made of these views, with z of {tuple(actions.shape[:2])} views; got z of "
            f"shape {tuple(out.z.shape)}. Call out = model(views, actions) on the same batch."
        )
    distance = _distance(model)
    observed = actions.shape[1]
    where = views.device if generator is None else generator.device
    further = 1 + torch.randint(observed, (1,), generator=generator, device=where)
    second = (torch.arange(observed, device=views.device) + further.to(views.device, non_blocking=True)) % (
        observed + 1
    )

    z, target, valid = out.z, torch.cat([_observed_targets(model, out, views), out.target[:, None]], dim=1), None
    if mask is not None:
        last = last_view(mask, actions)[:, None]
        steps = torch.arange(observed + 1, device=mask.device)
        counts = torch.cat([mask, mask[:, :1] & False], dim=1) | (steps == last + 1)  # (B, T+1)
        valid = mask & counts[:, second]
        between = (steps[:-1] <= last) & (mask.cumsum(dim=1) > 0)  # padding holds no actions
        identity = group.identity(dtype=actions.dtype, device=actions.device)
        actions = torch.where(between[..., None], actions, identity)
        z, target = torch.where(mask[..., None], z, 0), torch.where(counts[..., None], target, 0)

    along = group.along(actions)  # (B, T+1, A)
    e = model.embed(group.compose(group.inverse(along[:, :-1]), along[:, second])).flatten(0, 1)  # (B·T, E)
    state = model.aggregate(z.flatten(0, 1)[:, None], e[:, None][:, :0])  # (B·T, S)
    distances = distance(model.predict(state, e), target[:, second].flatten(0, 1))  # (B·T,)
    if valid is None:
        loss = distances.mean()
    else:
        loss = torch.where(valid.flatten(), distances, 0).sum() / valid.sum().clamp(min=1)
    return LossOutput(loss, {"pairs": loss.detach()})


def rollout_loss(
    model: Any,
    views: Float[Tensor, "B views *image"],
    actions: Float[Tensor, "B T A"],
    *,
    observed: int,
    horizon: int,
) -> LossOutput:
    """Imagine `horizon` steps ahead, each prediction fed back as a view, and compare each with the view that came.

    ```
    1/K Σ_k distance(ẑ_k, target encoder(view T+k)),    ẑ_1 … ẑ_K = imagine(views 1 … T, a_1 … a_T−1, a_T … a_T+K−1)
    ```

    A model that plans or dreams is asked for several steps; this trains it for as many, where its loss trains it for
    one. The gradient goes through all steps, and to the encoder through the observed views. Of one step it is the
    model's own distance, without its regulariser.

    Args:
        model: with `imagine`, `target`, and a `loss` that has a `distance`.
        views: (B, T+K, …) or more, whose rest is not looked at.
        actions: between the views.
        observed: T, the views to begin with, at least 1.
        horizon: K, steps ahead, at least 1.

    Returns:
        The loss, to be added to `out.loss` with a weight of yours, and the distance at each step, `rollout_1` to
        `rollout_K`: the terms say how fast the imagination fades.

    Raises:
        ValueError: shapes that do not fit; fewer views than are observed and imagined; numbers below 1.
        TypeError: a model whose loss has no distance.

    Source:
        Two steps with gradient through both, as by Assran et al. 2025 (arXiv 2506.09985), V-JEPA 2-AC.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=True)
        >>> views, actions = torch.rand(2, 5, 3, 32, 32), torch.randn(2, 4, 4)
        >>> out = model(views[:, :4], actions[:, :3])
        >>> loss, terms = rollout_loss(model, views, actions, observed=3, horizon=2)
        >>> (out.loss + 0.5 * loss).backward()
        >>> list(terms)
        ['rollout_1', 'rollout_2']
    """
    check_sequence(views, actions)
    if observed < 1 or horizon < 1:
        raise ValueError(
            f"It takes 1 observed view and 1 step ahead at least; got observed={observed} and horizon={horizon}."
        )
    if views.shape[1] < (needed := observed + horizon):
        raise ValueError(
            f"{observed} observed views and {horizon} steps ahead take {needed} views; got {views.shape[1]}. Load "
            "more views of each source, or give a smaller horizon."
        )
    distance = _distance(model)
    target = model.target(views[:, observed:needed].flatten(0, 1))  # (B·K, D)
    past, future = actions[:, : observed - 1], actions[:, observed - 1 : needed - 1]
    ahead = model.imagine(views[:, :observed], past, future)  # (B, K, D)
    by_step = distance(ahead.flatten(0, 1), target).unflatten(0, (-1, horizon)).mean(dim=0)
    return LossOutput(by_step.mean(), {f"rollout_{k + 1}": step for k, step in enumerate(by_step.detach())})


def random_observed(
    views: Float[Tensor, "B views *image"],
    actions: Float[Tensor, "B T A"],
    *,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "B fewer *image"], Float[Tensor, "B less A"]]:
    """Cut a batch to its first t + 1 views, t drawn from 1 … T: for a model that is to be used at any length.

    A model that always saw T views is best at T. The cut costs nothing: what is not encoded saves time, (T + 1) / 2
    views are observed on average. One draw a batch, so that nothing is padded; for a length of each row's own, encode
    all and give the model a mask, `torch.arange(T) < torch.randint(1, T + 1, (B, 1))`.

    A compiled model may be compiled again for another length, and processes that draw differently wait for one another:
    give them one seed.

    Args:
        views: (B, T+1, …), T ≥ 1.
        actions: (B, T, A).
        generator: of the draw, on the CPU; torch's own by default.

    Returns:
        views (B, t+1, …), actions (B, t, A): parts of those given, not copies.

    Raises:
        ValueError: shapes that do not fit; a single view.

    Examples:
        >>> import torch
        >>> views, actions = torch.rand(2, 5, 3, 32, 32), torch.randn(2, 4, 4)
        >>> generator = torch.Generator().manual_seed(0)
        >>> [random_observed(views, actions, generator=generator)[1].shape[1] for _ in range(6)]
        [1, 4, 2, 1, 4, 4]
    """
    check_sequence(views, actions)
    if views.shape[1] < 2:
        raise ValueError(f"Two views and one action are the least that can be learnt from; got {views.shape[1]} view.")
    observed = int(torch.randint(1, views.shape[1], (), generator=generator, device="cpu"))
    return views[:, : observed + 1], actions[:, :observed]


def _distance(model: Any) -> nn.Module:
    """The distance inside the model's loss."""
    distance = getattr(model.loss, "distance", None)
    if distance is None:
        raise TypeError(
            f"The model's own distance is taken, of its loss; {type(model.loss).__name__} has none. Give it a module "
            "`distance`, (N, D), (N, D) → (N,)."
        )
    return distance


def _observed_targets(model: Any, out: SeqJEPAOutput, views: Tensor) -> Tensor:
    """The target encoder's representations of the observed views, (B, T, D): z itself where it is the encoder."""
    target = unwrap(model.target)
    if isinstance(target, OnlineTarget):
        return out.z
    if isinstance(target, StopGradientTarget):
        return out.z.detach()
    return model.target(views[:, :-1].flatten(0, 1)).unflatten(0, out.z.shape[:2])
