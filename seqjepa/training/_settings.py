"""What an optimiser or a scheduler was built with, told apart from what it has become since."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

__all__ = ["as_built", "check_fits", "is_replayed", "keep_new_settings", "set_rates"]

KEPT_FOR = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg"}  # a setting, and the state that it needs


def as_built(things: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the optimisers and schedulers among the things; none, where one of them was used already."""
    used = any(
        bool(thing.state) if isinstance(thing, Optimizer) else isinstance(thing, LRScheduler) and _steps(thing) > 0
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
    elif is_replayed(thing):
        changes = [] if then is None else _told(then, now)
    else:
        changes += _take_over(state, _unlike_progress(thing, state) if then is None else then, now)
    return state, sorted(set(changes))


def check_fits(optimizer: Optimizer, now: dict[str, Any]) -> None:
    """Raise where an optimiser that was given a state would fail at its next step."""
    for group, built in zip(optimizer.param_groups, now["param_groups"], strict=True):
        missing = sorted(built.keys() - group.keys())
        if missing:
            raise ValueError(
                f"It is of another optimiser than {type(optimizer).__name__}: no {', '.join(missing)} is in it."
            )
        for setting, key in KEPT_FOR.items():
            states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
            if group.get(setting) and any(state and key not in state for state in states):
                raise ValueError(f"It was saved without {setting}=True, and holds no {key}.")


def is_replayed(scheduler: Any) -> bool:
    """Whether a schedule is one of torch's that depends on the step alone but has no formula: it must be stepped."""
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, LambdaLR | ReduceLROnPlateau):
        return False
    if type(scheduler).__module__ != LRScheduler.__module__ or hasattr(scheduler, "_get_closed_form_lr"):
        return False
    parts = getattr(scheduler, "_schedulers", [])
    return not any(
        isinstance(part, ReduceLROnPlateau) or type(part).__module__ != LRScheduler.__module__ for part in parts
    )


def set_rates(scheduler: LRScheduler, anew: dict[str, Any] | None = None) -> list[str]:
    """Where a schedule is a function of the step, give the optimiser the rates of this one; what changed by it.

    Args:
        scheduler: with the state it was given.
        anew: how it was built, where it has to come to its step once more from there.
    """
    groups = scheduler.optimizer.param_groups
    before = [float(group["lr"]) for group in groups]
    rates: list[Any]
    if anew is not None:
        _replay(scheduler, anew)
        rates = [float(group["lr"]) for group in groups]
    elif isinstance(scheduler, LambdaLR):
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * factor(scheduler.last_epoch) for base, factor in pairs]
    elif hasattr(scheduler, "_get_closed_form_lr"):
        rates = scheduler._get_closed_form_lr()
    else:
        return []
    changes: list[str] = []
    for group, rate, old in zip(groups, rates, before, strict=True):
        if abs(float(rate) - old) <= 1e-9 * max(abs(old), abs(float(rate))):
            continue  # to the last bit what the run had come to by itself
        _set_rate(group, rate)
        change = f"rate at this step {old:.4g} → {float(rate):.4g}"
        changes += [] if change in changes else [change]
    scheduler._last_lr = [group["lr"] for group in groups]
    return changes


def _replay(scheduler: Any, built: dict[str, Any]) -> None:
    """From as it was built to the step that it has come to."""
    steps = _steps(scheduler)
    scheduler.load_state_dict(copy.deepcopy(built))
    for group, rate in zip(scheduler.optimizer.param_groups, built["_last_lr"], strict=True):
        _set_rate(group, rate)
    with catch_warnings():
        simplefilter("ignore")  # that the optimiser has made no step yet
        for _ in range(steps):
            scheduler.step()


def _steps(scheduler: Any) -> int:
    """Steps that a schedule has made; a ChainedScheduler does not count its own."""
    steps: int = scheduler.last_epoch if hasattr(scheduler, "last_epoch") else _steps(scheduler._schedulers[0])
    return steps


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _settings(thing: Any) -> dict[str, Any]:
    if isinstance(thing, Optimizer):
        return {"param_groups": [_settings_of_group(group) for group in thing.param_groups]}
    if isinstance(thing, LRScheduler):
        state, whole = copy.deepcopy(thing.state_dict()), is_replayed(thing)
        return {  # what begins with _ is its own bookkeeping
            name: value for name, value in state.items() if _is_plain(value) and (whole or not name.startswith("_"))
        }
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


def _told(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How two schedules that are replayed were built differently: by name, and at any depth."""
    common = [name for name in now if name in then]
    if all(_same(then[name], now[name]) for name in common):
        return []
    told = [name for name in common if name not in ("_last_lr", "_schedule_phases")]
    lines = [line for name in told for line in _differences(name.lstrip("_"), then[name], now[name])]
    return lines or ["schedule is another"]


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
        pairs = [(str(key), then.get(key), now.get(key)) for key in {**then, **now} if key != "_last_lr"]
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        pairs = [(name, before, after) for before, after in zip(then, now, strict=True)]
    else:
        return [] if _same(then, now) else [f"{name} {_shown(then)} → {_shown(now)}"]
    return [change for pair in pairs for change in _differences(*pair)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
