"""Elements of a group as the targets of a regression."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups import Crop, Group, Hue, Product, Rotation2D, Rotation3D

__all__ = [
    "are_elements", "canonical", "coordinate_names", "coordinates", "leading_parts", "line_coordinates", "line_names",
    "rotation_columns", "steady_coordinates", "steady_line_coordinates", "unit_rotations",
]  # fmt: skip


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


def coordinate_names(group: Group) -> tuple[str, ...]:
    """What each number of `coordinates` is.

    Examples:
        >>> from seqjepa.groups import Hue, Product, Translation
        >>> coordinate_names(Product({"light": Hue(), "shift": Translation(2)}))
        ('light cos', 'light sin', 'shift 0', 'shift 1')
    """
    if isinstance(group, Product):
        return tuple(f"{name} {n}".rstrip() for name, part in group.groups.items() for n in coordinate_names(part))
    if isinstance(group, Rotation3D):
        return ("x", "y", "z", "w")
    if isinstance(group, Crop):
        return ("y", "x", "height", "width", "flip")
    numbers = [""] if group.dim == 1 else [str(i) for i in range(group.dim)]
    if isinstance(group, Rotation2D | Hue):
        return tuple(f"{f} {i}".rstrip() for f in ("cos", "sin") for i in numbers)
    return tuple(numbers)


def line_coordinates(group: Group, action: Float[Tensor, "*N A"]) -> Float[Tensor, "*N K"]:
    """An action as numbers that grow with it: what a linear map is asked for, or reads.

    Turns and hues as wrapped angles, rotations of space as rotation vectors, everything else as it is.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Hue
        >>> line_coordinates(Hue(), torch.tensor([[0.25], [0.75]]))
        tensor([[ 0.2500],
                [-0.2500]])
    """
    if isinstance(group, Product):
        parts = group.split(action)
        return torch.cat([line_coordinates(part, parts[name]) for name, part in group.groups.items()], dim=-1)
    return group.log(action) if isinstance(group, Rotation2D | Hue | Rotation3D) else action


def line_names(group: Group) -> tuple[str, ...]:
    """What each number of `line_coordinates` is."""
    if isinstance(group, Product):
        return tuple(f"{name} {n}".rstrip() for name, part in group.groups.items() for n in line_names(part))
    if isinstance(group, Rotation3D):
        return ("x", "y", "z")
    if isinstance(group, Rotation2D | Hue):
        return ("",) if group.dim == 1 else tuple(map(str, range(group.dim)))
    return coordinate_names(group)


def steady_coordinates(group: Group, action: Float[Tensor, "N A"]) -> Float[Tensor, "N K"]:
    """`coordinates`, without the rounding of those that never vary: a regression must not take it for a target."""
    return _steady(group, coordinates(group, action), coordinate_names)


def steady_line_coordinates(group: Group, action: Float[Tensor, "N A"]) -> Float[Tensor, "N K"]:
    """`line_coordinates`, likewise."""
    return _steady(group, line_coordinates(group, action), line_names)


def _steady(group: Group, y: Tensor, names: Callable[[Group], tuple[str, ...]]) -> Tensor:
    return torch.where(y.std(dim=0, correction=0) > _rounding(group, names).to(y), y, y.mean(dim=0))


def _rounding(group: Group, names: Callable[[Group], tuple[str, ...]]) -> Float[Tensor, "K"]:
    """The deviation that rounding can give each coordinate of these names; that of a turn is about 1."""
    if isinstance(group, Product):
        return torch.cat([_rounding(part, names) for part in group.groups.values()])
    turns = isinstance(group, Rotation2D | Hue | Rotation3D)
    count = len(names(group))
    return torch.full((count,), 1e-6 if turns else 0.0, dtype=torch.float64, device="cpu")


def unit_rotations(group: Group, elements: Float[Tensor, "*N A"]) -> Float[Tensor, "*N A"]:
    """With every rotation of space at length 1; the other parts as they are."""
    if isinstance(group, Product):
        parts = group.split(elements).items()
        return group.join({name: unit_rotations(group.groups[name], part) for name, part in parts})
    return torch.nn.functional.normalize(elements, dim=-1) if isinstance(group, Rotation3D) else elements


def are_elements(group: Group, elements: Float[Tensor, "N V A"], actions: Float[Tensor, "N T A"]) -> bool:
    """Whether these are parameters that the actions lead between, part by part, within a twentieth of their size."""
    if isinstance(group, Product):
        of_view, between = group.split(elements), group.split(actions)
        return all(are_elements(part, of_view[name], between[name]) for name, part in group.groups.items())
    try:
        off = group.distance(group.actions(elements), actions).mean()
        size = group.distance(actions, group.identity(dtype=actions.dtype, device=actions.device)).mean()
    except ValueError:  # no quaternions of length 1, no windows
        return False
    return actions.shape[1] == 0 or bool(off <= 0.05 * size + 1e-3 * elements.abs().amax())


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
