"""What an optimiser or a scheduler was built with, told apart from what it has become since."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["as_built", "keep_new_settings", "set_rates"]


def as_built(things: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the optimisers and schedulers among the things; none, where one of them was used already."""
    used = any(
        bool(thing.state) if isinstance(thing, Optimizer) else isinstance(thing, LRScheduler) and thing.last_epoch > 0
        for thing in things.values()
    )
    return {} if used else {name: built for name, thing in things.items() if (built := _settings(thing))}


def keep_new_settings(
    thing: Any, state: dict[str, Any], then: dict[str, Any] | None, now: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The saved state with those settings that were built differently now, and what they are.

    A value that was built alike then and now is what the run has made of it; one that was not is a setting, and the
    new one holds. Where it is not known how the thing was built then, all that is no progress of the run is a setting.
    """
    state, changes = dict(state), []
    if isinstance(thing, Optimizer):
        groups = [dict(group) for group in state["param_groups"]]
        then = then or {"param_groups": [_settings_of_group(group) for group in groups]}
        for group, before, after in zip(groups, then["param_groups"], now["param_groups"], strict=False):
            changes += _take_over(group, before, after)
        state["param_groups"] = groups
    else:
        changes += _take_over(state, _unlike_progress(thing, state) if then is None else then, now)
    return state, sorted(set(changes))


def set_rates(scheduler: LRScheduler) -> list[str]:
    """Where a schedule is a function of the step, give the optimiser the rates of this one; what changed by it."""
    if isinstance(scheduler, LambdaLR):
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * factor(scheduler.last_epoch) for base, factor in pairs]
    elif hasattr(scheduler, "_get_closed_form_lr"):
        rates = scheduler._get_closed_form_lr()
    else:
        return []
    changes: list[str] = []
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        before = float(group["lr"])
        if abs(float(rate) - before) <= 1e-9 * max(abs(before), abs(float(rate))):
            continue  # to the last bit what the run had come to by itself
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        change = f"rate at this step {before:.4g} → {float(rate):.4g}"
        changes += [] if change in changes else [change]
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
    return changes


def _settings(thing: Any) -> dict[str, Any]:
    if isinstance(thing, Optimizer):
        return {"param_groups": [_settings_of_group(group) for group in thing.param_groups]}
    if isinstance(thing, LRScheduler):
        state = copy.deepcopy(thing.state_dict())  # what begins with _ is its own bookkeeping
        return {name: value for name, value in state.items() if _is_plain(value) and not name.startswith("_")}
    return {}


def _settings_of_group(group: dict[str, Any]) -> dict[str, Any]:
    """All but the weights and, where a scheduler moves it from initial_lr on, the rate."""
    moved = {"params", "lr"} if "initial_lr" in group else {"params"}
    return {k: copy.deepcopy(v) for k, v in group.items() if k not in moved and _is_plain(v)}


def _unlike_progress(scheduler: Any, state: dict[str, Any]) -> dict[str, Any]:
    """What of a saved schedule is a setting, where it is a function of the step; nothing is known of others."""
    if not isinstance(scheduler, LambdaLR) and not hasattr(scheduler, "_get_closed_form_lr"):
        return {}
    return {name: value for name, value in state.items() if name != "last_epoch"}


def _take_over(state: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Write into a state what was built differently now, and tell it."""
    changes = []
    for name in then.keys() & now.keys():
        if not _same(then[name], now[name]):
            state[name] = copy.deepcopy(now[name])
            changes += _differences(name, then[name], now[name])
    return changes


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.equal(*(torch.as_tensor(value, device="cpu") for value in (one, other)))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _differences(name: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        pairs = [(str(key), then.get(key), now.get(key)) for key in {**then, **now}]
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        pairs = [(name, before, after) for before, after in zip(then, now, strict=True)]
    else:
        return [] if _same(then, now) else [f"{name} {_shown(then)} → {_shown(now)}"]
    return [change for pair in pairs for change in _differences(*pair)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
