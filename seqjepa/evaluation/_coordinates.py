"""Elements of a group as the targets of a regression."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups import Group, Hue, Product, Rotation2D, Rotation3D

__all__ = ["canonical", "coordinates", "leading_parts", "rotation_columns"]


def coordinates(group: Group, action: Float[Tensor, "*N A"]) -> Float[Tensor, "*N K"]:
    """An action as numbers that vary continuously with it: what a regression is asked for.

    Angles and hues as cosine and sine; everything else as it is, quaternions as in the paper.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Hue
        >>> coordinates(Hue(), torch.tensor([[0.25], [-0.5]])).round(decimals=3).abs()
        tensor([[0., 1.],
                [1., 0.]])
    """
    if isinstance(group, Product):
        parts = group.split(action)
        return torch.cat([coordinates(part, parts[name]) for name, part in group.groups.items()], dim=-1)
    if isinstance(group, Rotation2D | Hue):
        angle = action * (1.0 if isinstance(group, Rotation2D) else 2 * torch.pi)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)
    return action


def canonical(group: Group, elements: Float[Tensor, "*N A"]) -> Float[Tensor, "*N A"]:
    """Absolute parameters with one sign for each rotation of space: q and −q would be two targets for one pose."""
    if isinstance(group, Product):
        return group.join({name: canonical(group.groups[name], part) for name, part in group.split(elements).items()})
    if isinstance(group, Rotation3D):
        return group.compose(group.identity(dtype=elements.dtype, device=elements.device), elements)
    return elements


def rotation_columns(group: Group | None) -> slice | None:
    """Which numbers of an action are its rotation of space, if it is one or holds just one."""
    if isinstance(group, Rotation3D):
        return slice(0, 4)
    if isinstance(group, Product):
        found = [name for name, part in group.groups.items() if isinstance(part, Rotation3D)]
        return group.columns(found[0]) if len(found) == 1 else None
    return None


def leading_parts(group: Group, columns: slice) -> Group:
    """The parts of a product before these columns: their coordinates may be more numbers than they are."""
    assert isinstance(group, Product)
    return Product({name: part for name, part in group.groups.items() if group.columns(name).stop <= columns.start})
