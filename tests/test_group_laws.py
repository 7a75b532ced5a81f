"""A group that breaks a law is refused by that law; those that obey pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa.groups import Flip, Group, Rotation2D, Rotation3D, Scale, Translation, check_group
from tests.test_groups import kinds, law, parameters


class Robot(Group):
    """x, y, heading; an action is as seen from where the robot stands."""

    dim = 3

    def identity(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(3, dtype=dtype, device=device)

    def relative(self, t0: Tensor, t1: Tensor) -> Tensor:
        return self.compose(self.inverse(t0), t1)

    def apply(self, t: Tensor, a: Tensor) -> Tensor:
        return self.compose(t, a)

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        cos, sin = a[..., 2].cos(), a[..., 2].sin()
        x, y = a[..., 0] + cos * b[..., 0] - sin * b[..., 1], a[..., 1] + sin * b[..., 0] + cos * b[..., 1]
        return torch.stack([x, y, torch.remainder(a[..., 2] + b[..., 2], 2 * torch.pi)], dim=-1)

    def inverse(self, a: Tensor) -> Tensor:
        cos, sin = a[..., 2].cos(), a[..., 2].sin()
        x, y = -cos * a[..., 0] - sin * a[..., 1], sin * a[..., 0] - cos * a[..., 1]
        return torch.stack([x, y, torch.remainder(-a[..., 2], 2 * torch.pi)], dim=-1)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        turn = Rotation2D().distance(a[..., 2:], b[..., 2:])
        return torch.linalg.vector_norm(a[..., :2] - b[..., :2], dim=-1) + turn

    def describe(self, a: Tensor) -> str:
        return f"{a[0]:+.1f} forwards"


POSES = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


@law
@kinds
def test_the_library_s_groups_obey(group: Group, kind: str) -> None:
    check_group(group, parameters(group, torch.Generator().manual_seed(0), torch.float32, kind))


def test_a_group_of_one_s_own_obeys_and_parameters_may_have_any_axes_in_front() -> None:
    check_group(Robot(), POSES)
    check_group(Robot(), POSES.unflatten(0, (8, 8)))
    check_group(Robot(), 9 * POSES)  # headings of several turns


def mutant(base: type[Group], *settings: int, **methods: Any) -> Group:
    return type("Mine", (base,), methods)(*settings)


BROKEN = {
    "the action backwards": (
        mutant(Translation, 3, relative=lambda self, t0, t1: t0 - t1), r"apply\(t0, relative\(t0, t1\)\) = t1: in 64 of"
    ),
    "the action left out": (mutant(Translation, 3, apply=lambda self, t, a: t + 0 * a), r"apply\(t0, relative"),
    "an action that leaves the heading out": (
        mutant(Translation, 3, relative=lambda self, t0, t1: (t1 - t0) * torch.tensor([1, 1, 0])),
        r"apply\(t0, relative.* It leaves number 2 out",
    ),
    "a distance that leaves the heading out": (
        mutant(Robot, distance=lambda self, a, b: (a - b)[..., :2].norm(dim=-1)),
        r"0 only where a and b are one action: .* differ in number 2",
    ),
    "a distance with a sign": (
        mutant(Translation, 3, distance=lambda self, a, b: (a - b).sum(-1)), r"distance\(a, b\) ≥ 0: there is one of -"
    ),
    "a distance for each number": (
        mutant(Translation, 3, distance=lambda self, a, b: (a - b).abs()), r"distance\(a, b\) has the shape"
    ),
    "not a number": (
        mutant(Translation, 3, inverse=lambda self, a: a * torch.nan), r"compose\(a, inverse\(a\)\) .* first by nan"
    ),
    "first b, then a": (
        mutant(Robot, compose=lambda self, a, b: Robot.compose(self, b, a), relative=lambda self, t0, t1: Robot.compose(
            self, Robot.inverse(self, t0), t1), apply=lambda self, t, a: Robot.compose(self, t, a)),
        r"compose\(relative\(t0, t1\), relative\(t1, t2\)\) = .* Look at compose: first a, then b",
    ),
    "as seen from outside": (
        mutant(Robot, relative=lambda self, t0, t1: t1 - t0, apply=lambda self, t, a: t + a),
        r"compose\(relative\(t0, t1\), relative\(t1, t2\)\)",
    ),
    "no inverse": (mutant(Robot, inverse=lambda self, a: -a, relative=lambda self, t0, t1: Robot.compose(
        self, Robot.inverse(self, t0), t1)), r"compose\(a, inverse\(a\)\) = identity\(\)"),
    "another identity": (
        mutant(Translation, 3, identity=lambda self, dtype=None, device=None: torch.ones(3, dtype=dtype)),
        r"relative\(t, t\) = identity\(\)",
    ),
    "an identity in the default dtype": (
        mutant(Translation, 3, identity=lambda self, dtype=None, device=None: torch.zeros(3)),
        r"identity\(dtype=torch.float64\) has the shape .*, and their dtype: .* made torch.float32",
    ),
    "the first axis for the last": (
        mutant(Translation, 3, inverse=lambda self, a: -a[:, :3]), r"inverse\(a\) has the shape .* in \(6, 3, 3\)"
    ),
    "numbers for words": (mutant(Translation, 3, describe=lambda self, a: a), r"describe\(a\) is a line of words"),
    "degrees for radians": (
        mutant(Rotation2D, 3, exp=lambda self, v: v.rad2deg(), log=lambda self, a: a.deg2rad()),
        r"distance\(exp\(v\), identity\(\)\) = \|v\|",
    ),
    "no way back": (mutant(Translation, 3, log=lambda self, a: 2 * a), r"log\(exp\(v\)\) = v"),
    "changes what it is given": (
        mutant(Rotation2D, 3, apply=lambda self, t, a: t.remainder_(2 * torch.pi) + a), r"were changed in place"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_group_is_refused_by_the_law_that_it_breaks(name: str) -> None:
    group, words = BROKEN[name]
    with pytest.raises(ValueError, match=rf"Mine breaks the law .*{words}"):
        check_group(group, POSES)


def test_parameters_that_try_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"eight views at least; got 7"):
        check_group(Robot(), POSES[:7])
    with pytest.raises(ValueError, match=r"the 3 numbers of Mine along the last axis"):
        check_group(mutant(Robot), POSES[:, :2])
    with pytest.raises(ValueError, match=r"A size must be above 0"):  # the group's own words
        check_group(Scale(3), POSES)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    for group, t in ((Rotation3D(), Rotation3D.random(9, generator=torch.Generator())), (Flip(), torch.ones(9, 1))):
        check_group(group, t)
    assert torch.equal(torch.get_rng_state(), state)
