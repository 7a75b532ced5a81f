"""Several groups side by side, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups.base import FixedGroup, Group, check_elements

__all__ = ["Product"]


class Product(FixedGroup):
    """Several groups at once: an action holds the numbers of each, in the order of their names.

    Args:
        groups: name → group, at least one.

    Shapes:
        parameters and actions (…, sum of the parts' dim). Distances (…): the Euclidean length of the parts' distances,
        whose units may differ; `distances` keeps them apart.

    Raises:
        ValueError: no groups; another last axis; parts that are missing or unknown.
        TypeError: a part that is not a Group; not a floating-point tensor.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Hue, Product, Rotation3D
        >>> group = Product({"rotation": Rotation3D(), "floor_hue": Hue(), "light_hue": Hue()})
        >>> group.dim, group.columns("floor_hue")
        (6, slice(4, 5, None))
        >>> group.split(group.identity())["rotation"]
        tensor([0., 0., 0., 1.])
        >>> group.describe(group.identity())
        'rotation 0° about (+0.0, +0.0, +0.0); floor_hue +0°; light_hue +0°'
    """

    groups: Mapping[str, Group]

    def __init__(self, groups: Mapping[str, Group]) -> None:
        if not groups:
            raise ValueError("A Product needs at least one group, by name; got none.")
        for name, group in groups.items():
            if not isinstance(group, Group):
                raise TypeError(
                    f"The part {name!r} of a Product must be a seqjepa.groups.Group; got {type(group).__name__}."
                )
        self._settle(groups=groups)

    def __eq__(self, other: object) -> bool:
        """Whether the parts are the same in the same order: the order is that of the numbers."""
        return isinstance(other, Product) and list(self.groups.items()) == list(other.groups.items())

    def __hash__(self) -> int:
        return hash(tuple(self.groups.items()))

    @property
    def dim(self) -> int:
        """The sum of the parts' dim."""
        return sum(group.dim for group in self.groups.values())

    @property
    def local_dim(self) -> int:
        """The sum of the parts' local_dim."""
        return sum(group.local_dim for group in self.groups.values())

    def columns(self, name: str) -> slice:
        """Which numbers of an action are this part's."""
        return self._columns(name, "dim")

    def local_columns(self, name: str) -> slice:
        """Which local coordinates are this part's."""
        return self._columns(name, "local_dim")

    def split(self, element: Float[Tensor, "*#B A"]) -> dict[str, Tensor]:
        """Actions or parameters by part."""
        self._check(element=element)
        return {name: element[..., self.columns(name)] for name in self.groups}

    def join(self, parts: Mapping[str, Tensor]) -> Float[Tensor, "*B A"]:
        """The parts' actions or parameters, (…, dim of the part) each, side by side."""
        if parts.keys() != self.groups.keys():
            raise ValueError(
                f"A Product of {', '.join(map(repr, self.groups))} is joined of exactly these parts; "
                f"got {', '.join(map(repr, parts)) or 'none'}."
            )
        for name, group in self.groups.items():
            check_elements(f"the part {name!r}", group.dim, **{name: parts[name]})
        return torch.cat([parts[name] for name in self.groups], dim=-1)

    def identity(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "A"]:
        """The parts' identities."""
        return torch.cat([group.identity(dtype=dtype, device=device) for group in self.groups.values()])

    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """Part by part."""
        return self._by_part("relative", t0, t1)

    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """Part by part."""
        return self._by_part("apply", t, a)

    def compose(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """Part by part."""
        return self._by_part("compose", a, b)

    def inverse(self, a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """Part by part."""
        return self._by_part("inverse", a)

    def exp(self, v: Float[Tensor, "*B n"]) -> Float[Tensor, "*B A"]:
        """Part by part."""
        self._check_local(v)
        return self.join({name: group.exp(v[..., self.local_columns(name)]) for name, group in self.groups.items()})

    def log(self, a: Float[Tensor, "*B A"]) -> Float[Tensor, "*B n"]:
        """Part by part."""
        parts = self.split(a)
        return torch.cat([group.log(parts[name]) for name, group in self.groups.items()], dim=-1)

    def distances(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> dict[str, Tensor]:
        """The distance of each part, (…), in the part's own units."""
        first, second = self.split(a), self.split(b)
        return {name: group.distance(first[name], second[name]) for name, group in self.groups.items()}

    def distance(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B"]:
        """The Euclidean length of the parts' distances."""
        return torch.linalg.vector_norm(torch.stack(list(self.distances(a, b).values()), dim=-1), dim=-1)

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """Each part by name."""
        self._check_one(a)
        parts = self.split(a)
        return "; ".join(f"{name} {group.describe(parts[name])}" for name, group in self.groups.items())

    def _columns(self, name: str, size: str) -> slice:
        if name not in self.groups:
            raise ValueError(f"Unknown part {name!r}; this Product has {', '.join(map(repr, self.groups))}.")
        start = 0
        for part, group in self.groups.items():
            if part == name:
                break
            start += getattr(group, size)
        return slice(start, start + getattr(self.groups[name], size))

    def _by_part(self, operation: str, *elements: Tensor) -> Tensor:
        split = [self.split(element) for element in elements]
        parts = {name: getattr(g, operation)(*(s[name] for s in split)) for name, g in self.groups.items()}
        return self.join(parts)
