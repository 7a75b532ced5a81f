"""The laws of a group, tried on elements of your own: what a new group must pass before anything is trained on it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups.base import Group, check_elements

__all__ = ["check_group"]

ROWS = 256


def check_group(group: Group, parameters: Float[Tensor, "*B A"], *, tolerance: float = 1e-4) -> None:
    """Raise unless a group obeys the laws of [`Group`][seqjepa.groups.Group] on these parameters of views.

    Pairs of them are drawn, and their actions composed, inverted, applied and compared, in float64. Tried are shapes,
    dtypes and broadcasting; that distances tell actions apart, in every number of them; `apply` and `relative`;
    identity, inverse and the composition of three; and, where there are local coordinates, `exp` and `log`.

    Args:
        group: your own.
        parameters: of eight views at least, of all kinds that occur: the more, the more is tried.
        tolerance: what a distance may be off by, in its own units.

    Raises:
        ValueError: the law that is broken, where, by how much, and what to look at; parameters of another size, or
            fewer than eight.
        TypeError: parameters that are not floating point.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Translation, check_group
        >>> class Reversed(Translation):
        ...     def relative(self, t0, t1):
        ...         return t0 - t1
        >>> check_group(Translation(2), torch.randn(64, 2))
        >>> check_group(Reversed(2), torch.randn(64, 2))                                      # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Reversed breaks the law apply(t0, relative(t0, t1)) = t1: ...
    """
    check_elements(type(group).__name__, group.dim, parameters=parameters)
    rows = parameters.detach().double().reshape(-1, group.dim)
    if len(rows) < 8:
        raise ValueError(f"A group is tried on eight views at least; got {len(rows)}. Draw more parameters.")
    generator = torch.Generator(device="cpu").manual_seed(0)
    rows = rows[torch.randperm(len(rows), generator=generator, device="cpu").to(rows.device)[:ROWS]]
    given = rows.clone()
    laws = _Laws(group, tolerance)
    laws.shapes(rows)
    laws.distances(rows)
    laws.operations(rows)
    laws.coordinates(rows)
    if not torch.equal(rows, given):
        raise laws.broken("operations leave what they are given as it is", "the parameters were changed in place")


class _Laws:
    """One group's."""

    def __init__(self, group: Group, tolerance: float) -> None:
        self.group, self.tolerance, self.name = group, tolerance, type(group).__name__

    def broken(self, law: str, came: str) -> ValueError:
        return ValueError(f"{self.name} breaks the law {law}: {came}.")

    def same(self, law: str, one: Tensor, other: Tensor, look_at: str) -> None:
        """Raise unless all are the same actions, by the group's distance."""
        apart = self.group.distance(one, other)
        wrong = ~(apart <= self.tolerance)  # NaN is wrong
        if wrong.any():
            first = int(wrong.flatten().nonzero()[0])
            raise self.broken(
                law,
                f"in {int(wrong.sum())} of {wrong.numel()} cases they are apart, first by "
                f"{apart.flatten()[first]:.4g}: {_row(one, first)} is not {_row(other, first)}. Look at {look_at}",
            )

    def shapes(self, rows: Tensor) -> None:
        group, dim = self.group, self.group.dim
        for dtype in (torch.float32, torch.float64):
            t = rows.to(dtype)
            identity = group.identity(dtype=dtype, device=rows.device)
            grid, one = t[:6, None], t[None, :5]  # broadcast to (6, 5)
            made = {
                f"identity(dtype={dtype})": (identity, (dim,)),
                "relative(t0, t1)": (group.relative(grid, one), (6, 5, dim)),
                "apply(t0, a)": (group.apply(grid, group.relative(one, one)), (6, 5, dim)),
                "compose(a, b)": (group.compose(group.relative(grid, grid), group.relative(one, one)), (6, 5, dim)),
                "inverse(a)": (group.inverse(group.relative(grid, one)), (6, 5, dim)),
                "distance(a, b)": (group.distance(group.relative(grid, one), identity), (6, 5)),
            }
            for call, (found, shape) in made.items():
                if tuple(found.shape) != shape or found.dtype != dtype:
                    raise self.broken(
                        f"{call} has the shape that its arguments broadcast to, and their dtype",
                        f"of {dtype} in shapes that broadcast to (6, 5, {dim}) it made {found.dtype} in "
                        f"{tuple(found.shape)}, not {shape}. Index the last axis as x[..., i], and make constants "
                        "from what is given",
                    )
        words = group.describe(group.relative(rows[0], rows[1]))
        if not isinstance(words, str):
            raise self.broken("describe(a) is a line of words", f"it returned a {type(words).__name__}")

    def distances(self, rows: Tensor) -> None:
        group = self.group
        t0, t1, t2 = rows, rows.roll(1, 0), rows.roll(3, 0)
        a, other = group.relative(t0, t1), group.relative(t0, t2)
        apart = group.distance(a, other)
        if not bool((apart >= 0).all()):
            raise self.broken("distance(a, b) ≥ 0", f"there is one of {apart.min():.4g}")
        self.same("distance(a, a) = 0", a, a, "distance")
        for k in range(group.dim):
            b = a.clone()
            b[:, k] = other[:, k]  # another action in one number, where it is one at all
            try:
                is_action = (group.relative(t0, group.apply(t0, b)) - b).abs().amax(dim=-1) < self.tolerance
            except ValueError:
                continue  # numbers that hang together, as a quaternion's
            differ = is_action & ((a - b).abs()[:, k] > 1e-2)
            if differ.any() and bool((group.distance(a, b)[differ] < self.tolerance).all()):
                first = int(differ.nonzero()[0])
                raise self.broken(
                    "distance(a, b) = 0 only where a and b are one action",
                    f"it is 0 between {_row(a, first)} and {_row(b, first)}, which differ in number {k}",
                )

    def operations(self, rows: Tensor) -> None:
        group, same = self.group, self.same
        t0, t1, t2, t3 = rows, rows.roll(1, 0), rows.roll(3, 0), rows.roll(4, 0)
        a, b, c = group.relative(t0, t1), group.relative(t1, t2), group.relative(t2, t3)
        e = group.identity(dtype=rows.dtype, device=rows.device).expand_as(a)
        there, law = group.apply(t0, a), "apply(t0, relative(t0, t1)) = t1"
        same(law, group.relative(t1, there), group.relative(t1, t1), "the order of arguments in relative and apply")
        for k in range(group.dim):  # numbers that go round are equal up to whole turns, but not all of them
            other = t1.clone()
            other[:, k] = t3[:, k]
            differ = (other - t1)[:, k].abs() > 1e-2
            try:
                blind = group.distance(group.relative(t1, other), e) < self.tolerance
            except ValueError:
                continue  # numbers that hang together, as a quaternion's
            if differ.any() and bool(blind[differ].all()):
                first = int(differ.nonzero()[0])
                came = f"relative finds no difference between {_row(t1, first)} and {_row(other, first)}"
                raise self.broken(law, f"{came}. It leaves number {k} out")
        same("relative(t, t) = identity()", group.relative(t0, t0), e, "relative and identity")
        same("compose(a, identity()) = a", group.compose(a, e), a, "compose and identity")
        same("compose(identity(), a) = a", group.compose(e, a), a, "compose and identity")
        law = "compose(relative(t0, t1), relative(t1, t2)) = relative(t0, t2)"
        same(law, group.compose(a, b), group.relative(t0, t2), "compose: first a, then b; is an action as seen from t0")
        law = "apply(apply(t, a), b) = apply(t, compose(a, b))"
        twice, once = group.apply(group.apply(t0, a), b), group.apply(t0, group.compose(a, b))
        same(law, group.relative(t0, twice), group.relative(t0, once), "apply and compose")
        same("compose(a, inverse(a)) = identity()", group.compose(a, group.inverse(a)), e, "inverse")
        same("compose(inverse(a), a) = identity()", group.compose(group.inverse(a), a), e, "inverse")
        law = "compose(compose(a, b), c) = compose(a, compose(b, c))"
        same(law, group.compose(group.compose(a, b), c), group.compose(a, group.compose(b, c)), "compose")

    def coordinates(self, rows: Tensor) -> None:
        group = self.group
        try:
            size = group.local_dim
        except NotImplementedError:
            return
        generator = torch.Generator(device="cpu").manual_seed(0)
        v = torch.randn(64, size, generator=generator, dtype=torch.float64, device="cpu").to(rows.device) / 10
        e = group.identity(dtype=v.dtype, device=v.device)
        self.same("exp(0) = identity()", group.exp(torch.zeros_like(v)), e.expand(64, -1), "exp")
        a = group.exp(v)
        for law, found, expected in (
            ("log(exp(v)) = v", group.log(a), v),
            ("distance(exp(v), identity()) = |v|", group.distance(a, e)[:, None], v.norm(dim=-1, keepdim=True)),
        ):
            if found.shape != expected.shape or not bool(((found - expected).abs() <= self.tolerance).all()):
                raise self.broken(law, f"of v = {_row(v, 0)} it makes {_row(found, 0)}, not {_row(expected, 0)}")
        self.same("exp(log(a)) = a", group.exp(group.log(a)), a, "exp and log")


def _row(x: Tensor, index: int) -> str:
    row = x.reshape(-1, x.shape[-1])[index]
    return f"({', '.join(f'{number:.4g}' for number in row.tolist())})"
