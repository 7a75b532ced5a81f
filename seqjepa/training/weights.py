"""Which weights decay."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from seqjepa.aggregator import SequenceAggregator
from seqjepa.target import EMATarget

__all__ = ["weight_groups"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM = re.compile(r"norm(act)?(\dd)?$", re.IGNORECASE)  # a class's name: timm's and others' own norms
TOKEN_OR_POSITION = re.compile(r"(^|_)(tokens?|pos|positions?|pos_emb\w*|position_\w+)$")  # a parameter's last name


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The weights that learn, in two groups for an optimiser: those that decay, and those that don't.

    Nothing decays that sets a scale or a place: norms, biases and other vectors, the [AGG] token, class, register and
    position tokens, and what a timm model names in `no_weight_decay()`. Frozen weights are in neither group, nor is the
    [`EMATarget`][seqjepa.EMATarget], frozen or not; a weight that is used in several places is there once.

    Args:
        model: wrapped, compiled or neither.
        weight_decay: of the first group, at least 0; that of the second is 0.

    Returns:
        Dictionaries with `params` and `weight_decay`, without empty groups.

    Raises:
        ValueError: a negative weight decay; no weight that learns.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=4)
        >>> optimizer = torch.optim.AdamW(weight_groups(model, 1e-3), lr=4e-4)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(38, 0.001), (73, 0.0)]
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0; got {weight_decay}.")
    left_out, spared = _left_out(model), _spared(model)
    learning = [p for p in model.parameters() if p.requires_grad and id(p) not in left_out]
    if not learning:
        raise ValueError("No weight of this model learns: all are frozen or the target's. Unfreeze a part first.")
    groups = [
        {"params": [p for p in learning if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in learning if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _left_out(model: nn.Module) -> set[int]:
    targets = [module for module in model.modules() if isinstance(module, EMATarget)]
    return {id(p) for target in targets for p in target.parameters()}


def _spared(model: nn.Module) -> set[int]:
    """The parameters that don't decay, by any of their names."""
    spared = set()
    for name, p in model.named_parameters(remove_duplicate=False):
        last = name.removesuffix(".weight").rpartition(".")[2]
        if p.ndim < 2 or last.endswith("bias") or TOKEN_OR_POSITION.search(last):
            spared.add(id(p))
    for module in model.modules():
        if isinstance(module, NORMS) or NORM.search(type(module).__name__):
            spared |= {id(p) for p in module.parameters(recurse=False)}
        if isinstance(module, SequenceAggregator) and module.positions is not None:
            spared |= {id(p) for p in module.positions.parameters(recurse=False)}
        named = getattr(module, "no_weight_decay", None)
        if callable(named):
            patterns = [str(pattern) for pattern in named()]
            for name, p in module.named_parameters(remove_duplicate=False):
                if any(fnmatchcase(name, pattern) for pattern in patterns):
                    spared.add(id(p))
    return spared
