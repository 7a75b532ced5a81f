"""The laws of groups of actions, over random elements, near the identity and at half turns, in both precisions."""

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.func import grad, jacrev, vmap

from seqjepa import groups
from seqjepa.groups import Crop, Flip, Group, Hue, Product, Rotation2D, Rotation3D, Scale, Translation
from seqjepa.groups.rotations import canonical, multiply

N = 64
EXAMPLE = Product({"turn": Rotation2D(), "pose": Rotation3D(), "hue": Hue(), "size": Scale(), "window": Crop()})
GROUPS: list[Group] = [
    Translation(1), Translation(3), Rotation2D(), Rotation2D(2), Hue(), Scale(2), Flip(), Crop(), Rotation3D(), EXAMPLE,
]  # fmt: skip


def quaternions(g: torch.Generator, dtype: torch.dtype, kind: str) -> Tensor:
    """Random ones; ones a hair from the identity; half turns, w = 0 exactly. Of either sign."""
    q = torch.randn(N, 4, generator=g, dtype=dtype)
    if kind == "small":
        q = q * torch.tensor([1e-4, 1e-4, 1e-4, 0.0], dtype=dtype) + torch.tensor([0.0, 0, 0, 1], dtype=dtype)
    if kind == "half turns":
        q[:, 3] = 0
        q[::3, 0] = 0
        q[::4, 1] = 0
    sign = torch.randint(2, (N, 1), generator=g) * 2 - 1
    return q / q.norm(dim=-1, keepdim=True) * sign


def parameters(group: Group, g: torch.Generator, dtype: torch.dtype, kind: str) -> Tensor:
    """(N, dim) parameters of views."""
    if isinstance(group, Product):
        return group.join({name: parameters(part, g, dtype, kind) for name, part in group.groups.items()})
    if isinstance(group, Rotation3D):
        return quaternions(g, dtype, kind)
    normal = torch.randn(N, group.dim, generator=g, dtype=dtype) * (1e-4 if kind == "small" else 1)
    bits = torch.randint(2, (N, 1), generator=g).to(dtype)
    if isinstance(group, Flip):
        return bits
    if isinstance(group, Scale):
        return normal.exp()
    if isinstance(group, Crop):
        return torch.cat([normal[:, :2], normal[:, 2:4].exp(), bits], dim=-1)
    if isinstance(group, Rotation2D | Hue):
        period = 1.0 if isinstance(group, Hue) else 2 * math.pi
        if kind == "half turns":
            return torch.randint(-3, 4, (N, group.dim), generator=g).to(dtype) * (period / 2)
        return normal * period
    return normal


def tolerance(dtype: torch.dtype) -> float:
    return 2e-4 if dtype == torch.float32 else 1e-9


def near(group: Group, a: Tensor, b: Tensor) -> None:
    """The same action, by the group's own distance."""
    distance = group.distance(a, b)
    assert distance.shape == torch.broadcast_shapes(a.shape, b.shape)[:-1]
    assert (distance >= 0).all()
    assert distance.max() < tolerance(a.dtype), distance.max()


law = pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__ + str(group.dim))
kinds = pytest.mark.parametrize("kind", ["random", "small", "half turns"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])


@law
@kinds
@dtypes
@given(seed=st.integers(0, 2**31))
def test_actions_obey_the_laws_of_a_group(group: Group, kind: str, dtype: torch.dtype, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    t0, t1, t2, t3 = (parameters(group, g, dtype, kind) for _ in range(4))
    a, b, c = group.relative(t0, t1), group.relative(t1, t2), group.relative(t2, t3)
    e = group.identity(dtype=dtype)
    assert e.shape == (group.dim,)
    assert a.dtype == e.dtype == dtype

    there = group.apply(t0, a)  # apply(t0, relative(t0, t1)) = t1
    near(group, group.relative(t1, there), e)
    near(group, group.relative(t0, t0), e)
    near(group, group.compose(a, b), group.relative(t0, t2))
    near(group, group.compose(group.compose(a, b), c), group.compose(a, group.compose(b, c)))
    near(group, group.compose(a, e), a)
    near(group, group.compose(e, a), a)
    near(group, group.compose(a, group.inverse(a)), e)
    near(group, group.compose(group.inverse(a), a), e)
    near(group, group.inverse(a), group.relative(t1, t0))
    near(group, group.inverse(group.inverse(a)), a)
    near(group, group.apply(group.apply(t0, a), b), group.apply(t0, group.compose(a, b)))

    path = torch.stack([t0, t1, t2, t3], dim=-2)
    torch.testing.assert_close(group.actions(path), torch.stack([a, b, c], dim=-2), rtol=0, atol=0)
    near(group, group.path_composition(group.actions(path)), group.relative(t0, t3))

    torch.testing.assert_close(group.distance(a, b), group.distance(b, a), rtol=1e-3, atol=tolerance(dtype))
    assert (group.distance(a, c) <= group.distance(a, b) + group.distance(b, c) + tolerance(dtype)).all()
    assert isinstance(group.describe(a[0]), str)


@law
@kinds
def test_gradients_are_finite(group: Group, kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    t0 = parameters(group, g, torch.float32, kind).requires_grad_()
    t1 = parameters(group, g, torch.float32, kind)
    a = group.relative(t0, t1)
    outputs = [
        group.apply(t0, a), group.compose(a, a), group.inverse(a), group.distance(a, group.relative(t1, t0)),
        group.distance(a, a), group.path_composition(a.expand(3, *a.shape)),
    ]  # fmt: skip
    loss = torch.stack([output.square().sum() for output in outputs]).sum()
    gradient = torch.autograd.grad(loss, t0)[0]
    assert gradient.isfinite().all()


@law
def test_leading_axes_broadcast_and_an_empty_path_is_the_identity(group: Group) -> None:
    g = torch.Generator().manual_seed(0)
    t = parameters(group, g, torch.float32, "random")
    assert group.relative(t[0], t.unflatten(0, (8, 8))).shape == (8, 8, group.dim)
    empty = group.path_composition(t.unflatten(0, (8, 8))[:, :0])
    torch.testing.assert_close(empty, group.identity().expand(8, group.dim))


def local(group: Group, g: torch.Generator, dtype: torch.dtype, kind: str) -> Tensor:
    """(N, local_dim) local coordinates, less than half way round: anywhere, a hair from 0, a hair from half way."""
    if isinstance(group, Product):
        return torch.cat([local(part, g, dtype, kind) for part in group.groups.values()], dim=-1)
    v = torch.randn(N, group.local_dim, generator=g, dtype=dtype)
    if kind == "small":
        return v * 10.0 ** torch.randint(-9, -1, (N, 1), generator=g)
    half = {Rotation3D: math.pi, Rotation2D: math.pi, Hue: 0.5}.get(type(group))
    if half is None:
        return v
    unit = v / (v.norm(dim=-1, keepdim=True) if isinstance(group, Rotation3D) else v.abs())
    return unit * half * (torch.rand(N, 1, generator=g, dtype=dtype) * 0.99 if kind == "random" else 1 - 2e-5)


@law
@kinds
@dtypes
@given(seed=st.integers(0, 2**31))
def test_local_coordinates_are_a_chart_whose_lengths_are_distances(
    group: Group, kind: str, dtype: torch.dtype, seed: int
) -> None:
    v = local(group, torch.Generator().manual_seed(seed), dtype, kind)
    a, e = group.exp(v), group.identity(dtype=dtype)
    assert v.shape == (N, group.local_dim)
    assert (a.shape, a.dtype) == ((N, group.dim), dtype)
    assert (group.log(a).shape, group.log(a).dtype) == (v.shape, dtype)
    rtol, atol = (2e-5, 1e-6) if dtype == torch.float32 else (1e-9, 1e-12)
    torch.testing.assert_close(group.log(a), v, rtol=rtol, atol=atol)  # log(exp(v)) = v
    near(group, group.exp(group.log(a)), a)
    near(group, group.exp(torch.zeros_like(v)), e.expand(N, -1))
    torch.testing.assert_close(group.distance(a, e), torch.linalg.vector_norm(v, dim=-1), rtol=rtol, atol=atol)


@law
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-9, 1e-3, 1.0, math.pi - 1e-4, math.pi])
def test_local_coordinates_have_finite_gradients(group: Group, length: float) -> None:
    v = torch.full((group.local_dim,), length / max(group.local_dim, 1) ** 0.5).requires_grad_()
    a = group.exp(v)
    through = torch.autograd.grad(group.log(a).sum() + a.sum() + group.distance(a, group.identity()), v)[0]
    assert through.isfinite().all()
    if isinstance(group, Rotation3D) and length < 0.1:  # to first order half the vector, and no more
        jacobian = jacrev(group.exp)(v.detach())
        torch.testing.assert_close(jacobian[:3], torch.eye(3) / 2, rtol=0, atol=1e-6)
        torch.testing.assert_close(jacrev(lambda v: group.log(group.exp(v)))(v.detach()), torch.eye(3))


@given(seed=st.integers(0, 2**31))
def test_the_series_near_no_turn_meets_the_formula(seed: int) -> None:
    """Values and gradients on either side of where the one takes over from the other, beside SciPy's."""
    direction = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lengths = torch.tensor([0.3e-3, 0.99e-3, 1.01e-3, 1.9e-3, 2.1e-3, 5e-3], dtype=torch.float64)
    v = direction / direction.norm() * lengths[:, None]
    q = Rotation3D().exp(v)
    np.testing.assert_allclose(q.numpy(), Rotation.from_rotvec(v.numpy()).as_quat(), atol=1e-16, rtol=4e-16)
    np.testing.assert_allclose(Rotation3D().log(q).numpy(), v.numpy(), rtol=1e-14)
    for function, at in ((Rotation3D().exp, v), (Rotation3D().log, q)):
        for row in at:
            assert torch.autograd.gradcheck(function, row.clone().requires_grad_(), eps=1e-6, atol=1e-7)


@kinds
@dtypes
@given(seed=st.integers(0, 2**31))
def test_rotation_vectors_are_scipys(kind: str, dtype: torch.dtype, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q = quaternions(g, dtype, kind)
    v = Rotation3D().log(q)
    assert (v.norm(dim=-1) <= math.pi + 1e-5).all()
    there = Rotation.from_rotvec(v.double().numpy()).inv() * Rotation.from_quat(q.double().numpy())
    assert there.magnitude().max() < (1e-3 if dtype == torch.float32 else 1e-7)
    far = torch.randn(N, 3, generator=g, dtype=dtype) * 5  # several turns
    there = Rotation.from_rotvec(far.double().numpy()).inv() * Rotation.from_quat(
        Rotation3D().exp(far).double().numpy()
    )
    assert there.magnitude().max() < (1e-3 if dtype == torch.float32 else 1e-7)


def test_along_one_direction_local_coordinates_add() -> None:
    g = torch.Generator().manual_seed(0)
    for group in (Translation(3), Rotation2D(2), Hue(), Scale(2), Rotation3D()):
        v = local(group, g, torch.float64, "random")
        near(group, group.compose(group.exp(0.3 * v), group.exp(1.1 * v)), group.exp(1.4 * v))
        near(group, group.exp(-v), group.inverse(group.exp(v)))


def test_local_coordinates_of_a_product_are_those_of_its_parts() -> None:
    assert EXAMPLE.local_dim == 1 + 3 + 1 + 1 + 4
    assert EXAMPLE.local_columns("pose") == slice(1, 4)
    assert EXAMPLE.local_columns("window") == slice(6, 10)
    v = local(EXAMPLE, torch.Generator().manual_seed(0), torch.float64, "random")
    parts = EXAMPLE.split(EXAMPLE.exp(v))
    assert torch.equal(parts["pose"], Rotation3D().exp(v[:, 1:4]))
    assert torch.equal(parts["window"][:, :4], v[:, 6:])
    assert Product({"flip": Flip(), "hue": Hue()}).exp(torch.tensor([0.75])).tolist() == [0.0, -0.25]


def test_a_group_without_local_coordinates_says_so() -> None:
    class Coin(Flip):
        local_dim, exp, log = Group.local_dim, Group.exp, Group.log

    product = Product({"hue": Hue(), "coin": Coin()})
    asked: list[Callable[[], object]] = [
        lambda: Coin().local_dim, lambda: Coin().exp(torch.zeros(0)), lambda: Coin().log(torch.zeros(1)),
        lambda: product.local_dim, lambda: product.exp(torch.zeros(1)), lambda: product.log(torch.zeros(2)),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(NotImplementedError, match=r"Coin has no local coordinates yet\. Give it local_dim, exp"):
            ask()


def test_bad_local_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"v must hold the 3 numbers of Rotation3D's local coordinates .* \(4,\)"):
        Rotation3D().exp(torch.zeros(4))
    with pytest.raises(ValueError, match=r"v must hold the 10 numbers of Product's local coordinates"):
        EXAMPLE.exp(torch.zeros(12))
    with pytest.raises(TypeError, match=r"v must be floating point; got torch.int64"):
        Translation(2).exp(torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="Quaternions must have length 1"):
        Rotation3D().log(2 * UNIT)
    with pytest.raises(ValueError, match=r"A flip has no local coordinates; .* must be 0; got 1 at \[1\]. Set it to 0"):
        Crop().log(torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]))
    with pytest.raises(ValueError, match="A flip has no local coordinates"):
        Flip().log(torch.ones(1))
    with pytest.raises(ValueError, match="Unknown part 'colour'; this Product has 'turn', 'pose'"):
        EXAMPLE.local_columns("colour")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@law
def test_half_precision_local_coordinates_are_close_enough(group: Group, dtype: torch.dtype) -> None:
    v = (local(group, torch.Generator().manual_seed(0), torch.float32, "random") * 0.5).to(dtype)
    assert group.exp(v).dtype == group.log(group.exp(v)).dtype == dtype
    torch.testing.assert_close(group.log(group.exp(v)), v, rtol=0.05, atol=0.02)


@dtypes
@given(seed=st.integers(0, 2**31))
def test_circular_actions_are_canonical(dtype: torch.dtype, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    t0, t1 = torch.randn(2, 200, 1, generator=g, dtype=dtype) * 100
    for group, period in ((Rotation2D(), 2 * math.pi), (Hue(), 1.0)):
        a = group.relative(t0, t1)
        assert (a >= -period / 2 - 1e-6).all()
        assert (a < period / 2).all()
        turns = (t1 - t0 - a) / period
        torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("group", [Rotation2D(), Hue()], ids=["Rotation2D", "Hue"])
@dtypes
def test_what_lies_at_the_seam_of_the_circle_falls_on_one_side(group: Group, dtype: torch.dtype) -> None:
    half = 0.5 if isinstance(group, Hue) else math.pi
    seam = torch.tensor([[half], [-half], [3 * half], [-half - 1e-9], [-half * (1 + 1e-7)]], dtype=dtype)
    a = group.relative(torch.zeros_like(seam), seam)
    assert (a < half).all()
    assert (group.distance(a, torch.full_like(a, -half)) < 1e-6).all()
    tiny = torch.tensor([[1e-8], [-1e-8]], dtype=dtype)
    assert torch.equal(group.relative(torch.zeros_like(tiny), tiny), tiny)


@kinds
@dtypes
@given(seed=st.integers(0, 2**31))
def test_rotations_agree_with_scipy(kind: str, dtype: torch.dtype, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q0, q1 = quaternions(g, dtype, kind), quaternions(g, dtype, kind)
    r0, r1 = Rotation.from_quat(q0.double().numpy()), Rotation.from_quat(q1.double().numpy())
    group, atol = Rotation3D(), tolerance(dtype)

    def same(q: Tensor, rotation: Rotation) -> None:
        assert (q[:, 3] >= 0).all()
        angle = (Rotation.from_quat(q.double().numpy()).inv() * rotation).magnitude()
        assert angle.max() < 1e-3 if dtype == torch.float32 else angle.max() < 1e-7

    same(group.relative(q0, q1), r0.inv() * r1)
    same(group.compose(q0, q1), r0 * r1)
    same(group.inverse(q0), r0.inv())
    np.testing.assert_allclose(group.distance(q0, q1).numpy(), (r0.inv() * r1).magnitude(), atol=5 * atol)
    np.testing.assert_allclose(Rotation3D.to_matrix(q0).numpy(), r0.as_matrix(), atol=atol)
    same(Rotation3D.from_matrix(Rotation3D.to_matrix(q0)), r0)
    same(Rotation3D.from_6d(Rotation3D.to_6d(q0)), r0)
    angles = torch.randn(N, 3, generator=g, dtype=dtype) * 2
    same(Rotation3D.from_euler(angles), Rotation.from_euler("xyz", angles.double().numpy()))


@given(seed=st.integers(0, 2**31))
def test_the_relative_rotation_is_that_of_the_matrices(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q0, q1 = quaternions(g, torch.float64, "random"), quaternions(g, torch.float64, "random")
    product = Rotation3D.to_matrix(q0).mT @ Rotation3D.to_matrix(q1)
    torch.testing.assert_close(Rotation3D.to_matrix(Rotation3D().relative(q0, q1)), product)


@kinds
def test_both_signs_of_a_quaternion_are_one_action(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    q0, q1 = quaternions(g, torch.float32, kind), quaternions(g, torch.float32, kind)
    group = Rotation3D()
    for flipped in (group.relative(-q0, q1), group.relative(q0, -q1), group.relative(-q0, -q1)):
        assert torch.equal(flipped, group.relative(q0, q1))
    a = group.relative(q0, q1)
    assert (a[:, 3] >= 0).all()
    assert not torch.signbit(a[a == 0]).any()
    torch.testing.assert_close(group.distance(q0, -q0), torch.zeros(N), rtol=0, atol=1e-3)
    half = canonical(torch.tensor([[0.0, -1.0, 0.0, 0.0], [-0.6, 0.8, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]))
    expected = torch.tensor([[0.0, 1, 0, 0], [0.6, -0.8, 0, 0], [0, 0, 1, 0]])
    assert torch.equal(half, expected)


def test_the_geodesic_is_precise_near_no_turn_and_near_half_a_turn() -> None:
    angle = torch.tensor([1e-6, 1e-3, 1.0, math.pi - 1e-3, math.pi])
    q = torch.stack([(angle / 2).sin(), angle * 0, angle * 0, (angle / 2).cos()], dim=-1)
    torch.testing.assert_close(Rotation3D().distance(q, Rotation3D().identity()), angle, rtol=1e-5, atol=1e-7)


def test_a_long_path_of_rotations_keeps_its_length() -> None:
    path = Rotation3D.random(500, generator=torch.Generator().manual_seed(0))
    total = Rotation3D().path_composition(path)
    torch.testing.assert_close(total.norm(), torch.tensor(1.0))
    expected = Rotation.identity()
    for q in path.double().numpy():
        expected = expected * Rotation.from_quat(q)
    assert (Rotation.from_quat(total.double().numpy()).inv() * expected).magnitude() < 1e-3


def test_random_rotations_are_uniform_and_one_seed_gives_one_draw() -> None:
    q = Rotation3D.random(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(q, Rotation3D.random(20_000, generator=torch.Generator().manual_seed(0)))
    # Haar: a rotated vector is uniform on the sphere, and the angle has the density (1 − cos θ) / π.
    turned = Rotation3D.to_matrix(q) @ torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(turned.T @ turned / len(q), torch.eye(3) / 3, rtol=0, atol=0.02)
    angle = Rotation3D().distance(q, Rotation3D().identity())
    torch.testing.assert_close(angle.mean(), torch.tensor(math.pi / 2 + 2 / math.pi), rtol=0, atol=0.02)


def test_a_matrix_turns_vectors_as_the_quaternion_does() -> None:
    g = torch.Generator().manual_seed(0)
    q, v = quaternions(g, torch.float64, "random"), torch.randn(N, 3, generator=g, dtype=torch.float64)
    pure = torch.cat([v, torch.zeros(N, 1, dtype=torch.float64)], dim=-1)
    conjugated = multiply(multiply(q, pure), q * torch.tensor([-1.0, -1, -1, 1]))
    torch.testing.assert_close((Rotation3D.to_matrix(q) @ v[..., None]).squeeze(-1), conjugated[:, :3])


@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10))
def test_a_crops_action_depends_on_no_unit_and_no_place(seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    t0, t1 = (parameters(Crop(), g, torch.float64, "random") for _ in range(2))
    a = Crop().relative(t0, t1)
    unit = torch.tensor([scale, scale, scale, scale, 1], dtype=torch.float64)
    moved = torch.tensor([3, -2, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(Crop().relative(t0 * unit + moved, t1 * unit + moved), a)


def test_a_mirrored_window_sees_its_neighbour_on_the_other_side() -> None:
    here, right = torch.tensor([0.0, 0, 2, 4, 0]), torch.tensor([0.0, 1, 2, 4, 0])
    mirror = torch.tensor([0.0, 0, 0, 0, 1])
    assert Crop().relative(here, right).tolist() == [0, 0.25, 0, 0, 0]
    assert Crop().relative(here + mirror, right + mirror).tolist() == [0, -0.25, 0, 0, 0]
    assert Crop().relative(here, right + mirror).tolist() == [0, 0.25, 0, 0, 1]


def test_a_product_keeps_its_parts_by_name() -> None:
    g = torch.Generator().manual_seed(0)
    t0, t1 = (parameters(EXAMPLE, g, torch.float32, "random") for _ in range(2))
    parts = EXAMPLE.split(EXAMPLE.relative(t0, t1))
    assert list(parts) == ["turn", "pose", "hue", "size", "window"]
    assert torch.equal(parts["hue"], Hue().relative(t0[:, EXAMPLE.columns("hue")], t1[:, EXAMPLE.columns("hue")]))
    assert torch.equal(EXAMPLE.join(dict(reversed(parts.items()))), EXAMPLE.relative(t0, t1))
    distances = EXAMPLE.distances(EXAMPLE.relative(t0, t1), EXAMPLE.identity())
    torch.testing.assert_close(distances["hue"], parts["hue"].abs().squeeze(-1))
    total = torch.stack(list(distances.values())).square().sum(0).sqrt()
    torch.testing.assert_close(EXAMPLE.distance(EXAMPLE.relative(t0, t1), EXAMPLE.identity()), total)


def test_products_are_equal_where_parts_and_order_are() -> None:
    first, second = Product({"a": Hue(), "b": Scale()}), Product({"a": Hue(), "b": Scale()})
    assert first == second
    assert hash(first) == hash(second)
    assert first != Product({"b": Scale(), "a": Hue()})
    assert first != Product({"a": Hue(), "b": Hue()})


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_a_group_is_a_value_that_nothing_changes(group: Group) -> None:
    twins = [copy.deepcopy(group), pickle.loads(pickle.dumps(group)), eval(repr(group), vars(groups))]
    for twin in twins:
        assert twin == group
        assert hash(twin) == hash(group)
        assert repr(twin) == repr(group)
    assert sum(group == other for other in GROUPS) == 1
    with pytest.raises(AttributeError, match=f"{type(group).__name__} cannot be changed; build another"):
        group.dim = 7  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot be changed"):
        del group.dim


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_a_group_is_left_alone_by_what_converts_the_tensors_of_a_batch(group: Group) -> None:
    assert not dataclasses.is_dataclass(group)  # those are taken apart and rebuilt, field by field
    assert not isinstance(group, Mapping | tuple | list)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_circular_actions_keep_their_precision(dtype: torch.dtype) -> None:
    for group, half in ((Rotation2D(), math.pi), (Hue(), 0.5)):
        t = torch.tensor([[0.25], [7.0], [-9.0]], dtype=dtype)
        assert group.relative(t, t.flip(0)).dtype == dtype
        if dtype == torch.float64:
            below = torch.nextafter(torch.tensor([-half], dtype=dtype), torch.tensor([-9.0], dtype=dtype))
            a = group.relative(torch.zeros_like(below), below)
            assert -half <= a < half
            assert group.distance(a, torch.full_like(a, -half)) < 1e-14


def test_descriptions_are_in_plain_units() -> None:
    group = Product({"turn": Rotation2D(), "hue": Hue(), "size": Scale(), "shift": Translation(2), "flip": Flip()})
    action = torch.tensor([math.pi / 6, 0.25, math.log(2), 0.5, -1, 1])
    assert group.describe(action) == "turn +30°; hue +90°; size ×2.00; shift +0.50, -1.00; flip flip"
    quarter = torch.tensor([0.0, 0.0, 0.5, 0.5]).sqrt()
    assert Rotation3D().describe(quarter) == "90° about (+0.0, +0.0, +1.0)"
    window = torch.tensor([0.5, -0.25, math.log(2), 0.0, 1.0])
    assert Crop().describe(window) == "+0.50 down, -0.25 right, ×2.00 high, ×1.00 wide, flip"


UNIT = torch.tensor([0.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Rotation3D().relative(UNIT, 1.1 * UNIT),
            r"length 1 \(within 0.001\) in t1; got 1.1 at \[\]. Divide by the length",
        ),
        (lambda: Rotation3D().relative(UNIT * 0, UNIT), "Quaternions must have length 1"),
        (lambda: Rotation3D().inverse(UNIT * torch.nan), "Quaternions must have length 1"),
        (lambda: Rotation3D().compose(UNIT[:3], UNIT), r"4 numbers of Rotation3D .* got shape \(3,\)"),
        (lambda: Rotation3D.from_euler(torch.zeros(4)), r"3 numbers of Euler angles .* got shape \(4,\)"),
        (lambda: Rotation3D.from_matrix(-torch.eye(3)), r"determinant \+1; got -1"),
        (lambda: Rotation3D.from_matrix(2 * torch.eye(3)), "the identity within 0.01; got 3"),
        (lambda: Rotation3D.from_matrix(torch.zeros(2, 3)), r"axes \(…, 3, 3\); got shape \(2, 3\)"),
        (lambda: Rotation3D.from_6d(torch.ones(6)), "different directions"),
        (lambda: Translation(0), "at least one number; got 0"),
        (lambda: Translation(2).relative(torch.zeros(3), torch.zeros(3)), r"2 numbers of Translation .* \(3,\)"),
        (lambda: Hue().apply(torch.zeros(1), torch.tensor(0.0)), r"1 number of Hue .* got shape \(\)"),
        (lambda: Scale().relative(torch.tensor([1.0]), torch.tensor([0.0])), r"above 0 in t1; got 0 at \[0\]"),
        (
            lambda: Crop().relative(torch.ones(5), torch.zeros(5)),
            r"sides of a window must be above 0 in t1; got 0 at \[0\]",
        ),
        (
            lambda: Crop().apply(torch.tensor([1.0, 1, 1, 0, 1]), torch.ones(5)),
            r"sides of a window must be above 0 in t; got 0 at \[1\]",
        ),
        (lambda: Rotation3D().inverse(1.1 * UNIT.half()), r"length 1 \(within 0.02\)"),
        (lambda: Translation(2).path_composition(torch.zeros(2)), r"\(…, T, A\); got shape \(2,\)"),
        (lambda: Product({}), "at least one group"),
        (lambda: Hue().describe(torch.zeros(2, 1)), r"describe takes one action, \(1,\); got shape \(2, 1\)"),
        (lambda: EXAMPLE.describe(torch.zeros(2, 12)), r"describe takes one action, \(12,\)"),
        (
            lambda: Product({"hue": Hue()}).join({"hue": torch.zeros(3, 2)}),
            r"hue must hold the 1 number of the part 'hue'",
        ),
        (lambda: EXAMPLE.columns("colour"), "Unknown part 'colour'; this Product has 'turn', 'pose'"),
        (lambda: EXAMPLE.join({"turn": torch.zeros(1)}), "exactly these parts; got 'turn'"),
    ],
)
def test_bad_elements_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_elements_are_floating_point_tensors() -> None:
    with pytest.raises(TypeError, match=r"t1 must be floating point; got torch.int64. Convert with t1.float\(\)"):
        Translation(2).relative(torch.zeros(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(TypeError, match=r"t0 must be a torch.Tensor; got list"):
        Translation(2).relative([0.0, 0.0], torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"part 'shift' of a Product must be a seqjepa\.groups\.Group; got int"):
        Product({"shift": 2})  # type: ignore[dict-item]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_quaternions_are_unit_enough(dtype: torch.dtype) -> None:
    q = Rotation3D.random(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert Rotation3D().relative(q, q.roll(1, 0)).isfinite().all()


def test_groups_compile_into_one_graph() -> None:
    g = torch.Generator().manual_seed(0)
    t0, t1 = (parameters(EXAMPLE, g, torch.float32, "random") for _ in range(2))
    compiled = torch.compile(EXAMPLE.relative, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(t0, t1), EXAMPLE.relative(t0, t1))


def operations(group: Group, t: Tensor) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Every operation, with elements to do it on: of views (B, 3, A)."""
    t0, t1, t2 = t.unbind(-2)
    a, b = group.relative(t0, t1), group.relative(t1, t2)
    found: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "relative": (group.relative, (t0, t1)), "apply": (group.apply, (t0, a)), "compose": (group.compose, (a, b)),
        "inverse": (group.inverse, (a,)), "distance": (group.distance, (a, b)), "actions": (group.actions, (t,)),
        "path_composition": (group.path_composition, (group.actions(t),)),
    }  # fmt: skip
    with torch.device("cpu"):
        v = local(group, torch.Generator().manual_seed(1), t.dtype, "random")[: len(t)]
    found |= {"exp": (group.exp, (v,)), "log": (group.log, (group.exp(v),))}
    if isinstance(group, Product):
        found["split and join"] = lambda x: group.join(group.split(x)), (a,)
        found["distances"] = lambda x, y: torch.stack(list(group.distances(x, y).values()), dim=-1), (a, b)
    if isinstance(group, Rotation3D):
        found |= {
            "to_matrix": (group.to_matrix, (a,)), "from_matrix": (group.from_matrix, (group.to_matrix(a),)),
            "to_6d": (group.to_6d, (a,)), "from_6d": (group.from_6d, (group.to_6d(a),)),
            "from_euler": (group.from_euler, (t0[..., :3],)),
        }  # fmt: skip
    return found


def views_of(group: Group, dtype: torch.dtype = torch.float64) -> Tensor:
    """(8, 3, A) parameters."""
    g = torch.Generator().manual_seed(0)
    return torch.stack([parameters(group, g, dtype, "random")[:8] for _ in range(3)], dim=1)


@law
def test_operations_run_on_tensors_without_values(group: Group) -> None:
    for name, (operation, elements) in operations(group, views_of(group)).items():
        expected, got = operation(*elements), operation(*(x.to("meta") for x in elements))
        assert got.is_meta, name
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name


@law
def test_under_vmap_each_row_is_what_it_is_by_itself(group: Group) -> None:
    for name, (operation, elements) in operations(group, views_of(group)).items():
        expected = torch.stack([operation(*row) for row in zip(*elements, strict=True)])
        torch.testing.assert_close(vmap(operation)(*elements), expected, msg=name)
        nested = vmap(vmap(operation))(*(x.unflatten(0, (2, 4)) for x in elements))
        torch.testing.assert_close(nested.flatten(0, 1), expected, msg=name)
        if len(elements) == 2:
            first, second = elements
            shared = vmap(operation, in_dims=(0, None))(first, second[0])
            torch.testing.assert_close(
                shared, torch.stack([operation(row, second[0]) for row in first]), msg=f"{name}, one for all"
            )


@law
def test_derivatives_by_function_are_those_of_backward(group: Group) -> None:
    for name, (operation, elements) in operations(group, views_of(group)).items():
        traced = elements[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(operation(traced, *elements[1:]).sum(), traced)

        def total(*row: Tensor, operation: Callable[..., Tensor] = operation) -> Tensor:
            return operation(*row).sum()

        torch.testing.assert_close(vmap(grad(total))(*elements), expected, msg=name)
        torch.testing.assert_close(jacrev(total)(*elements), expected, msg=name)


def test_what_breaks_a_rule_is_refused_where_it_can_be_read_and_lets_a_batch_of_functions_run() -> None:
    sizes = torch.tensor([[2.0], [-1.0]])
    with pytest.raises(ValueError, match=r"A size must be above 0 in t1; got -1 at \[1, 0\]"):
        Scale().relative(torch.ones(1), sizes)
    with pytest.raises(ValueError, match="A size must be above 0 in t0; got -1"):  # shared by all rows: it can be read
        vmap(Scale().relative, in_dims=(None, 0))(-torch.ones(1), sizes.abs())
    assert vmap(Scale().relative)(torch.ones(2, 1), sizes).isnan().flatten().tolist() == [False, True]


@law
def test_defaults_of_torch_change_no_operation(group: Group) -> None:
    t = views_of(group, torch.float32)
    expected = {name: operation(*elements) for name, (operation, elements) in operations(group, t).items()}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = {name: operation(*elements) for name, (operation, elements) in operations(group, t).items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name, element in expected.items():
        assert (got[name].dtype, got[name].device) == (element.dtype, element.device), name
        assert torch.equal(got[name], element), name


def test_the_actions_along_a_path_are_the_compositions_of_its_beginnings() -> None:
    group = Rotation3D()
    actions = Rotation3D.random(3, 2, 5, generator=torch.Generator().manual_seed(0))
    along = group.along(actions)
    assert along.shape == (3, 2, 6, 4)
    for t in range(6):
        torch.testing.assert_close(along[:, :, t], group.path_composition(actions[:, :, :t]))
