"""Planning: which actions lead from what was seen to a goal, by imagining where they lead.

```
minimise over v    Σ_k cost(ẑ_k, z_goal),    ẑ_1 … ẑ_K = imagine_from(z, e, exp(v_1) … exp(v_K))
```

What is searched are the [local coordinates](../data/groups.md#plain-numbers-for-actions) v of the group that actions
belong to, plain numbers all of which are actions. The views are encoded once, however long the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa._checks import check_axes, check_sequence, check_tensor
from seqjepa._modes import eval_mode, fresh_casts
from seqjepa.groups import Group, Translation
from seqjepa.loss import CosineDistance

__all__ = ["CEM", "MPPI", "GradientSearch", "Plan", "Search", "plan"]

Objective = Callable[[Tensor], Tensor]


class Plan(NamedTuple):
    """What [`plan`][seqjepa.planning.plan] found.

    Attributes:
        actions: (B, K, A), to be taken one after the other.
        cost: (B,), the model's own: the distances to the goal that it imagines, summed over the steps.
        history: (rounds, B), the cost of what the search held after each round.
    """

    actions: Float[Tensor, "B K A"]
    cost: Float[Tensor, "B"]
    history: Float[Tensor, "rounds B"]


@runtime_checkable
class Search(Protocol):
    """A search over plans: from where to begin to what was found, and its cost after each round.

    One of your own is any function of an objective, where to begin, bounds and a generator. The objective takes plans
    (B, N, K, n), N of each source, in local coordinates, and returns their costs (B, N), the lower the better. Bounds
    are how far from 0 each coordinate may be, or None for any.

    Shapes:
        start (B, K, n), bounds (n,) → what was found (B, K, n), its cost after each round (rounds, B).

    Examples:
        >>> import torch
        >>> def at_random(objective, start, bounds, generator):
        ...     plans = start[:, None] + torch.randn(1, 512, *start.shape[1:], generator=generator)
        ...     costs, best = objective(plans).min(dim=1)
        ...     return plans.take_along_dim(best[:, None, None, None], dim=1)[:, 0], costs[None]
        >>> found, _ = at_random(lambda v: v.square().sum((2, 3)), torch.ones(2, 1, 1), None, None)
        >>> found.abs().max() < 0.1
        tensor(True)
    """

    def __call__(
        self,
        objective: Objective,
        start: Float[Tensor, "B K n"],
        bounds: Float[Tensor, "n"] | None,
        generator: torch.Generator | None,
    ) -> tuple[Float[Tensor, "B K n"], Float[Tensor, "rounds B"]]:
        """Search."""


@dataclass(frozen=True)
class CEM:
    """The cross-entropy method: draw plans, keep the best, draw the next ones as the best are spread.

    The elites stay until better ones are found, so the best cost never rises, and it is never above that of the start:
    the middle of what is drawn is always among it.

    Attributes:
        samples: plans drawn a round, at least 1.
        rounds: at least 1.
        elites: how many are kept, 1 … samples.
        spread: deviation of the first draws, in local coordinates (radians, logarithms, …), above 0.
        smoothing: share of the old mean and spread in the new, in [0, 1): a spread that falls more slowly.

    Raises:
        ValueError: settings out of range.

    Source:
        Rubinstein 1999; smoothed as in V-JEPA 2-AC (arXiv 2506.09985).

    Examples:
        >>> import torch
        >>> start, away = torch.zeros(2, 1, 3), torch.tensor([1.0, -0.5, 0.2])
        >>> found, history = CEM(rounds=20)(
        ...     lambda v: (v - away).square().sum((2, 3)), start, None, torch.Generator().manual_seed(0))
        >>> torch.allclose(found[0, 0], away, atol=1e-2), bool((history.diff(dim=0) <= 0).all())
        (True, True)
    """

    samples: int = 256
    rounds: int = 6
    elites: int = 32
    spread: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        _check_settings(self.samples, self.rounds, self.spread)
        if not 1 <= self.elites <= self.samples:
            raise ValueError(
                f"Elites are kept of the samples, 1 … {self.samples}; got elites={self.elites}. Draw more samples."
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is the share of the old, in [0, 1); got {self.smoothing}.")

    def __call__(
        self, objective: Objective, start: Tensor, bounds: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Search."""
        mean, spread = start, torch.full_like(start, self.spread)
        kept, costs = start[:, None][:, :0], start.new_zeros(len(start), 0)
        history = []
        for _ in range(self.rounds):
            drawn = _drawn(mean, spread, self.samples, bounds, generator)
            everything, costs = torch.cat([kept, drawn], dim=1), torch.cat([costs, objective(drawn)], dim=1)
            costs, best = costs.topk(self.elites, dim=1, largest=False)
            kept = everything.take_along_dim(best[:, :, None, None], dim=1)
            mean = torch.lerp(kept.mean(1), mean, self.smoothing)
            spread = torch.lerp(kept.std(1, correction=0), spread, self.smoothing)
            history.append(costs[:, 0])
        return kept[:, 0], torch.stack(history)


@dataclass(frozen=True)
class MPPI:
    """Model-predictive path integral: draw plans, and take their mean, weighed by exp(−cost / temperature).

    Every plan has its say, so the result is smoother than the best draw; its cost may rise from a round to the next.

    Attributes:
        samples: plans drawn a round, at least 1.
        rounds: at least 1.
        temperature: above 0, in units of the cost. Towards 0 the best draw is taken, towards infinity the plain mean.
        spread: deviation of the first draws, in local coordinates, above 0.
        decay: of the spread from a round to the next, in (0, 1]; 1 is the classic form, which never settles.

    Raises:
        ValueError: settings out of range.

    Source:
        Williams et al. 2017 (arXiv 1707.02342).

    Examples:
        >>> import torch
        >>> start, away = torch.zeros(2, 1, 3), torch.tensor([1.0, -0.5, 0.2])
        >>> found, _ = MPPI(rounds=20)(
        ...     lambda v: (v - away).square().sum((2, 3)), start, None, torch.Generator().manual_seed(0))
        >>> torch.allclose(found[0, 0], away, atol=0.1)
        True
    """

    samples: int = 256
    rounds: int = 6
    temperature: float = 0.05
    spread: float = 0.5
    decay: float = 0.7

    def __post_init__(self) -> None:
        _check_settings(self.samples, self.rounds, self.spread)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"The temperature must be above 0 and finite; got {self.temperature}.")
        if not 0 < self.decay <= 1:
            raise ValueError(f"The spread decays by a factor in (0, 1] a round; got decay={self.decay}.")

    def __call__(
        self, objective: Objective, start: Tensor, bounds: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Search."""
        mean, spread = start, torch.full_like(start, self.spread)
        history = []
        for _ in range(self.rounds):
            drawn = _drawn(mean, spread, self.samples, bounds, generator)
            weights = (-objective(drawn) / self.temperature).softmax(dim=1)[:, :, None, None]
            mean = (weights * drawn).sum(1)
            spread = self.decay * spread
            history.append(objective(mean[:, None])[:, 0])
        return mean, torch.stack(history)


@dataclass(frozen=True)
class GradientSearch:
    """Follow the gradient of the cost by Adam, from several places at once; keep the best plan that came by.

    Attributes:
        rate: Adam's learning rate, in local coordinates a step, above 0.
        rounds: evaluations, with a step between two, at least 1.
        samples: places to begin at, at least 1: the start, and others drawn about it.
        spread: deviation of those, in local coordinates, above 0.

    Raises:
        ValueError: settings out of range.

    Examples:
        >>> import torch
        >>> start, away = torch.zeros(2, 1, 3), torch.tensor([1.0, -0.5, 0.2])
        >>> found, history = GradientSearch(rate=0.1, rounds=100)(
        ...     lambda v: (v - away).square().sum((2, 3)), start, None, torch.Generator().manual_seed(0))
        >>> torch.allclose(found[0, 0], away, atol=1e-2), bool((history.diff(dim=0) <= 0).all())
        (True, True)
    """

    rate: float = 0.05
    rounds: int = 50
    samples: int = 8
    spread: float = 0.5

    def __post_init__(self) -> None:
        _check_settings(self.samples, self.rounds, self.spread)
        if not 0 < self.rate < math.inf:
            raise ValueError(f"The rate must be above 0 and finite; got {self.rate}.")

    def __call__(
        self, objective: Objective, start: Tensor, bounds: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Search."""
        v = _drawn(start, torch.full_like(start, self.spread), self.samples, bounds, generator)
        optimizer = torch.optim.Adam([v.requires_grad_()], lr=self.rate)
        kept, lowest = start, start.new_full(start.shape[:1], torch.inf)
        history = []
        for _ in range(self.rounds):
            with torch.enable_grad():
                costs = objective(v)
                (v.grad,) = torch.autograd.grad(costs.sum(), v)  # rows do not meet: the sum's gradient is each one's
            found, best = costs.detach().min(dim=1)
            plans = v.detach().take_along_dim(best[:, None, None, None], dim=1)[:, 0]
            kept = torch.where((found < lowest)[:, None, None], plans, kept)
            lowest = torch.minimum(found, lowest)
            history.append(lowest)
            optimizer.step()
            with torch.no_grad():
                v.copy_(_bounded(v, bounds))
        return kept, torch.stack(history)


def plan(
    model: Any,
    views: Float[Tensor, "B T *image"],
    actions: Float[Tensor, "B steps A"],
    goal: Float[Tensor, "B *image"] | Float[Tensor, "B D"],
    *,
    horizon: int,
    group: Group | None = None,
    search: Search | None = None,
    cost: Callable[[Tensor, Tensor], Tensor] | None = None,
    bounds: float | Float[Tensor, "n"] | None = None,
    start: Float[Tensor, "B K A"] | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """Find the actions whose imagined views come closest to a goal, for each source by itself.

    The distances to the goal are summed over the steps: to be there early, and to stay. Draws are shared by the sources
    of a batch, so each gets the plan that it gets alone. The model is in eval mode meanwhile; nothing of it changes.
    A low cost says that the *model* thinks the goal is near: take the first actions, look, and plan again.

    Args:
        model: a [`SeqJEPA`][seqjepa.SeqJEPA], or anything with its `encode`, `embed`, `imagine_from` and `target`.
        views: (B, T, …) what was seen, T ≥ 1.
        actions: (B, T−1, A), between these views.
        goal: a view of each source, which the target encodes, as what is predicted is; or its representation, (B, D).
            What has the shape of a view is one.
        horizon: K, how many actions, at least 1.
        group: what the actions are elements of, as in `batch.group`; None for plain vectors.
        search: [`CEM()`][seqjepa.planning.CEM] by default, [`MPPI`][seqjepa.planning.MPPI],
            [`GradientSearch`][seqjepa.planning.GradientSearch] or your own.
        cost: a module (N, D), (N, D) → (N,); the [cosine distance][seqjepa.loss.CosineDistance] by default.
        bounds: how far from 0 each local coordinate may be, one number or one each (n,), above 0; None for any.
        start: (B, K, A), where to begin, such as the rest of the last plan; to stay where one is by default.
        generator: of every draw; None takes torch's own.

    Returns:
        The actions, (B, K, A), with their cost and its history.

    Raises:
        ValueError: a horizon below 1; a goal that is neither a view nor a representation; a group whose actions are of
            another width; bounds or a start of another shape.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> from seqjepa.groups import Rotation3D
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=4)
        >>> views, goal = torch.rand(2, 1, 3, 32, 32), torch.rand(2, 3, 32, 32)
        >>> best = plan(model, views, torch.empty(2, 0, 4), goal, horizon=2, group=Rotation3D(),
        ...             search=CEM(samples=8, rounds=2, elites=4), generator=torch.Generator().manual_seed(0))
        >>> best.actions.shape, best.actions.norm(dim=-1).round().unique()         # unit quaternions
        (torch.Size([2, 2, 4]), tensor([1.]))
    """
    check_sequence(views, actions)
    check_tensor("goal", goal)
    if horizon < 1:
        raise ValueError(f"horizon is how many actions are planned, at least 1; got {horizon}.")
    group = Translation(actions.shape[2]) if group is None else group
    if group.dim != actions.shape[2]:
        raise ValueError(
            f"The group's actions have {group.dim} numbers; got actions of shape {tuple(actions.shape)}. Plan with the "
            "group that the actions are elements of, such as batch.group."
        )
    first = _first(group, actions, horizon, start)
    limit = _limit(bounds, first)
    search = CEM() if search is None else search
    distance = CosineDistance() if cost is None else cost
    with eval_mode(model), torch.no_grad(), fresh_casts(views.device):
        z, e = model.encode(views), model.embed(actions)
        z_goal = _goal(model, goal, views, z)

        def objective(v: Tensor) -> Tensor:
            rows, many = v.shape[:2]
            ahead = group.exp(v).flatten(0, 1)
            imagined = model.imagine_from(z.repeat_interleave(many, 0), e.repeat_interleave(many, 0), ahead)
            wanted = z_goal.repeat_interleave(many * horizon, 0)
            return distance(imagined.flatten(0, 1), wanted).unflatten(0, (rows, many, horizon)).sum(-1)

        found, history = search(objective, _bounded(first, limit), limit, generator)
        found = found.detach()
        return Plan(group.exp(found), objective(found[:, None])[:, 0], history)


def _first(group: Group, actions: Tensor, horizon: int, start: Tensor | None) -> Tensor:
    """Where the search begins, (B, K, n)."""
    if start is None:
        return actions.new_zeros(actions.shape[0], horizon, group.local_dim)
    check_axes("start", start, "B K A")
    if start.shape != (expected := (actions.shape[0], horizon, group.dim)):
        raise ValueError(
            f"start is a plan, (B, K, A), here {expected}; got shape {tuple(start.shape)}. Fill the rest of an older "
            "plan up with group.identity()."
        )
    return group.log(start)


def _limit(bounds: float | Tensor | None, first: Tensor) -> Tensor | None:
    """How far from 0 each coordinate may be, (n,)."""
    if bounds is None:
        return None
    n = first.shape[2]
    limit = torch.as_tensor(bounds, dtype=first.dtype, device=first.device)
    if limit.shape not in ((), (n,)) or (not isinstance(bounds, Tensor) and not bounds > 0):
        raise ValueError(
            f"bounds are one number above 0 or one for each of the {n} local coordinates; got "
            f"{bounds if limit.ndim == 0 else tuple(limit.shape)}."
        )
    return limit.expand(n)


def _goal(model: Any, goal: Tensor, views: Tensor, z: Tensor) -> Tensor:
    """The representation of the goal, (B, D)."""
    if goal.shape == (view := (views.shape[0], *views.shape[2:])):
        encoded: Tensor = model.target(goal)
        return encoded.detach()
    if goal.shape != (representation := (z.shape[0], z.shape[2])):
        raise ValueError(
            f"goal is a view of each source, here {view}, or its representation, {representation}; got shape "
            f"{tuple(goal.shape)}."
        )
    return goal


def _drawn(
    mean: Tensor, spread: Tensor, samples: int, bounds: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Plans (B, N, K, n) about the mean, itself the first; one draw for all rows, so that none depends on another."""
    on = mean.device if generator is None else generator.device
    noise = torch.randn(samples, *mean.shape[1:], generator=generator, dtype=mean.dtype, device=on).to(mean.device)
    noise[0] = 0
    return _bounded(mean[:, None] + spread[:, None] * noise, bounds)


def _bounded(v: Tensor, bounds: Tensor | None) -> Tensor:
    return v if bounds is None else v.clamp(min=-bounds, max=bounds)


def _check_settings(samples: int, rounds: int, spread: float) -> None:
    if samples < 1 or rounds < 1:
        raise ValueError(f"A search takes 1 sample and 1 round at least; got samples={samples} and rounds={rounds}.")
    if not 0 < spread < math.inf:
        raise ValueError(f"The spread of the first draws must be above 0 and finite; got {spread}.")
