"""Rendered objects: solids, pictures, and the collection."""

import colorsys
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from seqjepa.data.objects import Camera, RenderedObjects, collection
from seqjepa.data.objects.assembly import Assembly, Solids, instance_numbers
from seqjepa.data.objects.primitives import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    EMPTY,
    enter_box,
    enter_cylinder,
    enter_ellipsoid,
    outward,
)
from seqjepa.data.objects.render import AMBIENT, FILL, KEY, Layers, Light, hue_to_rgb, lay_over_floor, render_solids
from seqjepa.data.objects.shapes import CLASSES, build
from seqjepa.groups import Product, Rotation3D

RECORDINGS = Path(__file__).parent.parent / "recordings"

kinds = st.sampled_from([BOX, ELLIPSOID, CYLINDER])
tapers = st.sampled_from([0.0, 0.3, 1.0])
seeds = st.integers(0, 1000)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# An independent slow renderer: signed distances, marched along one ray after the other in float64.


def signed_distance(kind: int, p: Tensor, taper: float) -> Tensor:
    """Distances (N,) of points (N, 3) from a solid in its own frame, below 0 inside."""
    if kind == ELLIPSOID:
        return p.norm(dim=1) - 1
    if kind == BOX:
        q = p.abs() - 1
        return q.clamp(min=0).norm(dim=1) + q.amax(dim=1).clamp(max=0)
    # A capped cone is a quadrilateral in the plane of (radius, z): the distance to its outline.
    point = torch.stack([p[:, :2].norm(dim=1), p[:, 2]], dim=1)
    corners = torch.tensor([[0.0, -1], [1, -1], [taper, 1], [0, 1]], dtype=p.dtype)
    distance = torch.full((len(p),), torch.inf, dtype=p.dtype)
    for a, b in ((corners[0], corners[1]), (corners[1], corners[2]), (corners[2], corners[3])):
        along = ((point - a) @ (b - a) / (b - a).square().sum().clamp(min=1e-30)).clamp(0, 1)
        distance = torch.minimum(distance, (point - a - along[:, None] * (b - a)).norm(dim=1))
    inside = (p[:, 2].abs() < 1) & (point[:, 0] < (1 + taper) / 2 - p[:, 2] * (1 - taper) / 2)
    return torch.where(inside, -distance, distance)


def march(kind: int, origin: Tensor, direction: Tensor, taper: float, graze: float) -> tuple[Tensor, Tensor]:
    """t (N,) at which rays first touch the solid, infinite where they don't, and whether that is certain (N,).

    A ray may go either way that misses the solid made smaller by `graze`, and hits it made larger by as much.
    """
    t, closest = _march(kind, origin, direction, taper)
    _, depth = _march(kind, origin, direction, taper, margin=graze)
    return t, (depth < 1e-6) | (closest > graze)


def _march(kind: int, origin: Tensor, direction: Tensor, taper: float, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    t, closest = torch.zeros(len(direction), dtype=torch.float64), torch.full((len(direction),), torch.inf)
    speed = direction.norm(dim=1)
    for _ in range(400):
        distance = signed_distance(kind, origin + t[:, None] * direction, taper) + margin
        closest = torch.minimum(closest.double(), distance)
        t = t + distance.clamp(min=0) / speed
        if ((distance < 1e-9) | (distance > 2000)).all():  # there, or far beyond
            break
    return torch.where(closest < 1e-6, t, torch.inf), closest


def gradient(kind: int, p: Tensor, taper: float, step: float = 1e-5) -> Tensor:
    """Of the distance, by finite differences: the unit normal in the solid's own frame, (N, 3)."""
    ahead = [signed_distance(kind, p + step * axis, taper) for axis in torch.eye(3, dtype=p.dtype)]
    behind = [signed_distance(kind, p - step * axis, taper) for axis in torch.eye(3, dtype=p.dtype)]
    return (torch.stack(ahead, dim=1) - torch.stack(behind, dim=1)) / (2 * step)


def enter(kind: int, origin: Tensor, direction: Tensor, taper: float) -> Tensor:
    if kind == BOX:
        return enter_box(origin, direction)
    if kind == ELLIPSOID:
        return enter_ellipsoid(origin, direction)
    return enter_cylinder(origin, direction, torch.tensor(taper))


@given(kinds, tapers, seeds)
def test_a_ray_enters_a_solid_where_a_ray_marcher_meets_it(kind: int, taper: float, seed: int) -> None:
    g = generator(seed)
    origin = torch.randn(3, 200, generator=g)
    origin = (2 + 10 * torch.rand(200, generator=g)) * origin / origin.norm(dim=0)  # outside
    aim = 2.4 * torch.rand(3, 200, generator=g) - 1.2
    direction = (aim - origin) * (0.2 + torch.rand(200, generator=g))
    t, certain = march(kind, origin.T.double(), direction.T.double(), taper, graze=1e-4)
    got = enter(kind, origin, direction, taper)
    assert torch.equal(got.isfinite()[certain], t.isfinite()[certain])
    hit = got.isfinite() & t.isfinite()
    point = origin + got * direction
    surface = signed_distance(kind, point.T.double(), taper)
    assert surface[hit].abs().max() < 1e-4
    # Where the surface is met at a slant, a tiny offset sideways is a long way along the ray.
    normal = gradient(kind, (origin.T.double() + t[:, None] * direction.T.double())[hit], taper)
    slant = (normal * direction.T[hit] / direction.norm(dim=0)[hit][:, None]).sum(dim=1).abs()
    error = (got[hit] - t[hit]).abs() * direction.norm(dim=0)[hit]
    assert error[slant > 0.05].max() < 1e-3


@given(kinds, tapers, seeds)
def test_the_normal_is_the_gradient_of_the_distance(kind: int, taper: float, seed: int) -> None:
    g = generator(seed)
    origin = 4 * torch.nn.functional.normalize(torch.randn(3, 200, generator=g), dim=0)
    direction = 2 * torch.rand(3, 200, generator=g) - 1 - origin
    t = enter(kind, origin, direction, taper)
    point = (origin + t * direction)[:, t.isfinite()]
    normal = outward(torch.tensor(kind), point, torch.tensor(taper))
    normal = torch.nn.functional.normalize(normal, dim=0).T.double()
    expected = gradient(kind, 1.001 * point.T.double(), taper)  # just outside
    smooth = expected.norm(dim=1) > 0.999  # not at an edge, where the distance has no one gradient
    cosine = (normal * expected).sum(dim=1)[smooth]
    assert len(cosine) > 20
    assert (cosine > 0.999).double().mean() > 0.97  # the rest lie within a thousandth of an edge
    assert ((normal * direction.T[t.isfinite()]).sum(dim=1) < 1e-4).all()  # it faces the ray's origin


@pytest.mark.parametrize("kind", [BOX, ELLIPSOID, CYLINDER])
def test_a_ray_along_an_axis_is_as_good_as_any(kind: int) -> None:
    for axis in range(3):
        for sign in (-1.0, 1.0):
            origin, direction = torch.zeros(3), torch.zeros(3)
            origin[axis], direction[axis] = 3 * sign, -sign
            assert enter(kind, origin, direction, 1.0) == 2
            assert enter(kind, origin + 1.5 * torch.eye(3)[axis - 1], direction, 1.0) == torch.inf


def test_neither_form_of_a_cone_s_root_is_alone() -> None:
    """The quadratic of a ray parallel to the side has no square; that of one from the side's extension no constant."""
    cone = torch.tensor(0.0)
    parallel = enter_cylinder(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([-0.5, 0.0, -1.0]), cone)
    from_above = enter_cylinder(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([-0.7, 0.4, -3.0]), cone)
    torch.testing.assert_close(torch.stack([parallel, from_above]), torch.tensor([1.5, 1.0]))


# Pictures


def one_solid(kind: int, taper: float, g: torch.Generator, views: int = 1) -> Solids:
    """A solid of random shape, place and orientation within the unit ball, the same in all views."""
    assembly = Assembly(1, {"main": torch.tensor([0.7])})
    half = (0.15 + 0.35 * torch.rand(3, generator=g)).tolist()
    if kind == CYLINDER:
        assembly.cylinder((0, 0, 0), half[0], half[2], axis="xyz"[int(3 * half[1]) % 3], taper=taper)
    else:
        (assembly.box if kind == BOX else assembly.ellipsoid)((0, 0, 0), half)
    solids = assembly.solids()
    turn = Rotation3D.to_matrix(Rotation3D.random(1, generator=g))
    centre = 0.2 * (2 * torch.rand(1, 1, 3, generator=g) - 1)
    solids = solids._replace(frame=turn[:, None] @ solids.frame * 0.6, centre=centre)
    return solids.at(torch.zeros(views, dtype=torch.int64))


def random_light(views: int, g: torch.Generator) -> Light:
    draw = torch.rand(3, views, generator=g)
    return Light.above(draw[0] * math.pi / 4, draw[1] * 2 * math.pi, draw[2])


def march_world(
    solids: Solids, rotation: Tensor, origin: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t, whether hit or miss is certain, unit normals in the world and albedos, of the first object's nearest part."""
    count = len(direction)
    nearest, certain = torch.full((count,), torch.inf).double(), torch.ones(count, dtype=torch.bool)
    normals, albedos = torch.zeros(count, 3).double(), torch.zeros(count).double()
    for part, kind in enumerate(solids.kind[0].tolist()):
        if kind == EMPTY:
            continue
        inverse = torch.linalg.inv(rotation.double() @ solids.frame[0, part].double())
        centre, taper = rotation.double() @ solids.centre[0, part].double(), float(solids.taper[0, part])
        start, local = (origin.double() - centre) @ inverse.T, direction.double() @ inverse.T
        t, sure = march(kind, start.expand_as(local), local, taper, graze=1e-3)
        normal = torch.nn.functional.normalize(gradient(kind, start + t[:, None] * local, taper) @ inverse, dim=1)
        closer, certain = t < nearest, certain & sure
        nearest, albedos[closer] = torch.minimum(t, nearest), solids.albedo[0, part].double()
        normals[closer] = normal[closer]
    return nearest, certain, normals, albedos


def pixel_rays(camera: Camera, size: int) -> Tensor:
    """Directions in the world through the centres of the pixels, (S · S, 3), row by row."""
    right, down, forward = camera.axes
    rows = []
    for i in range(size):
        for j in range(size):
            u, v = (((k + 0.5) / size - 0.5) * 2 * camera.half_width for k in (j, i))
            rows.append(forward + u * right + v * down)
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "taper"), [(BOX, 1.0), (ELLIPSOID, 1.0), (CYLINDER, 1.0), (CYLINDER, 0.4)])
def test_silhouette_and_shading_of_a_solid_are_those_of_a_ray_marcher(kind: int, taper: float, seed: int) -> None:
    g = generator(seed)
    compare_with_marcher(one_solid(kind, taper, g), g, share=0.95)


@pytest.mark.parametrize("name", ["airplane", "chair", "mug"])
def test_of_an_object_the_nearest_part_is_seen(name: str) -> None:
    label = torch.tensor([list(CLASSES).index(name)])
    compare_with_marcher(build(torch.tensor([0]), label, 0), generator(3), share=0.9)


def compare_with_marcher(solids: Solids, g: torch.Generator, share: float) -> None:
    """Outline and colours; where two faces or parts meet a pixel may fall to either, on at most 1 − `share` of them."""
    size, camera = 24, Camera.facing()
    rotation = Rotation3D.to_matrix(Rotation3D.random(1, generator=g))
    light = random_light(1, g)
    layers = render_solids(solids, rotation, camera, light, size=size, samples=1)
    rays = pixel_rays(camera, size)
    t, certain, normal, albedo = march_world(solids, rotation[0], camera.position, rays)
    seen = layers.coverage[0, 0].flatten() > 0
    assert torch.equal(seen[certain], t.isfinite()[certain])
    assert 20 < seen.sum() < size * size / 2
    point = camera.position + t[:, None] * rays
    to_lamp = light.position - point
    far = to_lamp.norm(dim=1)
    lit = (normal * to_lamp).sum(dim=1).clamp(min=0) / far * (light.position.norm() / far) ** 2
    facing = -(normal * rays).sum(dim=1).clamp(max=0) / rays.norm(dim=1)
    tint = hue_to_rgb(light.hue, 0.4)
    expected = albedo[:, None] * (AMBIENT + FILL * facing[:, None] + KEY * lit[:, None] * tint)
    hit = seen & t.isfinite()
    error = (layers.colour[0].flatten(1).T - expected)[hit].abs().amax(dim=1)
    assert error.quantile(share) < 1e-3


@pytest.mark.parametrize("fill", [0.6, 2.0])  # of the second, the shadow reaches the border
@pytest.mark.parametrize(("kind", "taper"), [(BOX, 1.0), (ELLIPSOID, 1.0), (CYLINDER, 0.4)])
def test_the_shadow_lies_where_the_floor_does_not_see_the_lamp(kind: int, taper: float, fill: float) -> None:
    g = generator(5)
    size, camera, solids = 24, Camera.facing(elevation=1.0, fill=fill), one_solid(kind, taper, g)
    rotation, light = Rotation3D.to_matrix(Rotation3D.random(1, generator=g)), random_light(1, g)
    layers = render_solids(solids, rotation, camera, light, size=size, samples=1)
    rays = pixel_rays(camera, size)
    floor = camera.position + ((-1 - camera.position[2]) / rays[:, 2])[:, None] * rays
    t, _, _, _ = march_world(solids, rotation[0], light.position[0], floor - light.position)
    dark = (t.isfinite() & (t < 1)).double().reshape(size, size)
    assert dark.sum() > 10
    assert (dark[-1].sum() + dark[:, -1].sum() + dark[:, 0].sum() > 0) == (fill > 1)
    soft = torch.empty(size, size, dtype=torch.float64)  # the mean with the neighbours there are
    for i in range(size):
        for j in range(size):
            soft[i, j] = dark[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean()
    assert (layers.shadow[0, 0] - soft).abs().max() < 0.12  # a pixel on the outline may fall to either side


def test_the_floor_is_lit_as_lambert_says() -> None:
    g = generator(1)
    size, camera, light, floor_hue = 4, Camera.facing(), random_light(2, g), torch.rand(2, generator=g)
    colour, coverage, shadow = (torch.rand(2, n, size, size, generator=g) for n in (3, 1, 1))
    got = lay_over_floor(Layers(0.1 * colour, coverage, shadow), floor_hue, camera, light)
    rays = pixel_rays(camera, size)
    for view in range(2):
        hue, lamp_hue = floor_hue[view].item(), light.hue[view].item()
        albedo = 0.85 * torch.tensor(colorsys.hsv_to_rgb(hue, 0.55, 1.0))
        tint = torch.tensor(colorsys.hsv_to_rgb(lamp_hue, 0.4, 1.0))
        for k, ray in enumerate(rays):
            point = camera.position - ray * (camera.position[2] + 1) / ray[2]
            to_lamp = light.position[view] - point
            cosine = to_lamp[2] / to_lamp.norm()
            lit = cosine * light.position[view].norm() ** 2 / to_lamp.norm() ** 2
            at = view, slice(None), k // size, k % size
            floor = albedo * (AMBIENT + FILL / 2 + KEY * tint * lit * (1 - shadow[view, 0, k // size, k % size]))
            expected = 0.1 * colour[at] + (1 - coverage[view, 0, k // size, k % size]) * floor
            torch.testing.assert_close(got[at], expected.clamp(0, 1), atol=1e-4, rtol=0)


def test_the_lamp_stands_where_its_angles_say() -> None:
    theta, phi = torch.tensor([0.0, math.pi / 4, 0.3]), torch.tensor([1.0, math.pi / 2, math.pi])
    expected = torch.tensor([[0, 0, 1], [0, 0.5**0.5, 0.5**0.5], [-math.sin(0.3), 0, math.cos(0.3)]])
    got = Light.above(theta, phi, torch.zeros(3), distance=5.0).position
    torch.testing.assert_close(got, 5 * expected, atol=1e-5, rtol=0)


@given(seeds)
def test_turning_the_object_or_camera_and_light_the_other_way_gives_one_picture(seed: int) -> None:
    g = generator(seed)
    label = torch.randint(len(CLASSES), (4,), generator=g)
    solids = build(torch.arange(4) + seed, label, 0)
    r = Rotation3D.to_matrix(Rotation3D.random(generator=g))
    light, camera = random_light(4, g), Camera.facing()
    before = Rotation3D.to_matrix(Rotation3D.random(4, generator=g))
    turned = render_solids(solids, r @ before, camera, light, size=32, samples=1)
    other = Camera(r.T @ camera.position, camera.axes @ r, camera.half_width)
    walked = render_solids(solids, before, other, Light(light.position @ r, light.hue), size=32, samples=1)
    different = (turned.colour - walked.colour).abs().amax(dim=1) > 1e-3
    assert different.double().mean() < 0.003  # rounding flips a pixel on an edge
    assert torch.allclose(turned.coverage.mean(), walked.coverage.mean(), atol=2e-3)


@given(seeds)
def test_a_quaternion_turns_the_object_in_the_world(seed: int) -> None:
    g = generator(seed)
    q = Rotation3D.random(1, generator=g)
    centre = torch.nn.functional.normalize(torch.randn(3, generator=g), dim=0) * 0.8
    ball = one_solid(ELLIPSOID, 1.0, g)._replace(centre=centre[None, None], frame=0.1 * torch.eye(3)[None, None])
    camera = Camera.facing()
    layers = render_solids(ball, Rotation3D.to_matrix(q), camera, random_light(1, g), size=64, samples=2)
    place = torch.tensor(Rotation.from_quat(q[0].numpy()).apply(centre.numpy())).float()
    right, down, forward = camera.axes @ (place - camera.position)
    at = (torch.arange(64) + 0.5) / 64 * 2 - 1
    mass = layers.coverage[0, 0]
    x, y = ((mass.sum(axis) * at).sum() / mass.sum() for axis in (0, 1))
    expected = torch.stack([right, down]) / forward / camera.half_width
    torch.testing.assert_close(torch.stack([x, y]), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_samples_are_pixels_of_a_finer_picture(size: int) -> None:
    g = generator()
    solids, rotation = (
        build(torch.arange(16), torch.arange(16), 3),
        Rotation3D.to_matrix(Rotation3D.random(16, generator=g)),
    )
    light, camera = random_light(16, g), Camera.facing()
    fine = render_solids(solids, rotation, camera, light, size=8 * size, samples=1)
    for samples in (2, 4, 8):
        coarse = render_solids(solids, rotation, camera, light, size=8 * size // samples, samples=samples)
        for a, b in ((coarse.colour, fine.colour), (coarse.coverage, fine.coverage)):
            expected = torch.nn.functional.avg_pool2d(b, samples)
            assert ((a - expected).abs() > 1e-4).double().mean() < 1e-3  # rounding flips a sample on an edge


# The collection


@pytest.fixture(scope="module")
def objects() -> RenderedObjects:
    return RenderedObjects(num_instances=64, size=16, seed=0)


def test_a_batch_is_what_it_says(objects: RenderedObjects) -> None:
    index = torch.tensor([5, 63, 0, 5])
    batch = objects.sample(index, num_views=4, generator=generator())
    assert batch.views.shape == (4, 4, 3, 16, 16)
    assert 0 <= batch.views.min() < batch.views.max() <= 1
    assert batch.actions.shape == (4, 3, 4)
    assert batch.labels is not None
    assert torch.equal(batch.labels, index % 16)
    assert torch.equal(batch.parameters.instance, index)
    assert batch.group == Rotation3D()
    assert torch.equal(objects.render(batch.parameters), batch.views)
    assert len(objects) == 64
    assert "num_instances=64, size=16" in repr(objects)
    for hue in (batch.parameters.floor_hue, batch.parameters.light_hue):
        assert hue.unique().numel() == 16  # anew for each view: no shortcut to the object


def test_an_action_is_the_relative_rotation(objects: RenderedObjects) -> None:
    batch = objects.sample(torch.arange(16), num_views=5, generator=generator())
    r, q = Rotation3D.to_matrix(batch.parameters.rotation), Rotation3D.to_matrix(batch.actions)
    torch.testing.assert_close(q, r[:, :-1].mT @ r[:, 1:], atol=1e-5, rtol=0)
    assert (batch.actions[..., 3] >= 0).all()
    last = Rotation3D().apply(batch.parameters.rotation[:, 0], Rotation3D().path_composition(batch.actions))
    assert Rotation3D().distance(last, batch.parameters.rotation[:, -1]).max() < 1e-3


def test_an_action_holds_the_colours_that_are_named() -> None:
    names = ("rotation", "floor_hue", "light_hue")
    objects = RenderedObjects(16, size=8, actions=names)
    batch = objects.sample(torch.arange(16), num_views=3, generator=generator())
    assert batch.actions.shape == (16, 2, 6)
    assert isinstance(batch.group, Product)
    parts = batch.group.split(batch.actions)
    change = batch.parameters.light_hue.diff(dim=1)
    torch.testing.assert_close(parts["light_hue"][..., 0], (change + 0.5) % 1 - 0.5, atol=1e-6, rtol=0)
    plain = RenderedObjects(16, size=8).sample(torch.arange(16), num_views=3, generator=generator())
    assert torch.equal(parts["rotation"], plain.actions)
    assert torch.equal(batch.views, plain.views)
    one = RenderedObjects(16, size=8, actions=("floor_hue",))
    hue = one.sample(torch.arange(2), num_views=3)
    assert hue.actions.shape == (2, 2, 1)
    assert torch.equal(one.elements(hue.parameters)[..., 0], hue.parameters.floor_hue)


@pytest.mark.parametrize("names", [("rotation",), ("light_hue", "rotation"), ("floor_hue", "light_hue")])
def test_actions_are_taken_from_the_elements_in_the_order_of_the_names(names: tuple[str, ...]) -> None:
    objects = RenderedObjects(16, size=8, actions=names)
    batch = objects.sample(torch.arange(4), num_views=3, generator=generator())
    elements = objects.elements(batch.parameters)
    assert elements.shape == (4, 3, batch.group.dim)
    assert torch.equal(batch.group.actions(elements), batch.actions)
    parts = batch.group.split(elements) if isinstance(batch.group, Product) else {"rotation": elements}
    for name in names:
        assert torch.equal(parts[name].squeeze(-1), getattr(batch.parameters, name))


def rotation_angles(q: Tensor) -> Tensor:
    return (2 * q[..., 3].clamp(max=1).acos()).flatten().sort().values


def kolmogorov_smirnov(a: Tensor, b: Tensor) -> float:
    """Largest difference of two empirical distribution functions."""
    at = torch.cat([a, b])
    share = [torch.searchsorted(x, at, right=True) / len(x) for x in (a.sort().values, b.sort().values)]
    return (share[0] - share[1]).abs().max().item()


def drawn(rotations: str, n: int = 4000) -> Tensor:
    objects = RenderedObjects(16, size=1, rotations=rotations)
    return objects.draw(torch.arange(16), num_views=n // 16, generator=generator()).rotation


def test_the_euler_box_is_that_of_3diebench() -> None:
    latents = torch.load(RECORDINGS / "data_3diebench_latents.pt", weights_only=True)["latents_50x7"]
    q = torch.tensor(Rotation.from_euler("xyz", latents[:, :3].numpy()).as_quat()).float()
    recorded = rotation_angles(q * q[:, 3:].sign())
    bound = 1.63 / math.sqrt(50)  # one in a hundred draws of fifty is farther off
    assert kolmogorov_smirnov(rotation_angles(drawn("euler")), recorded) < bound
    assert kolmogorov_smirnov(rotation_angles(drawn("so3")), recorded) > bound
    assert kolmogorov_smirnov(rotation_angles(drawn("ood")), recorded) > bound


def test_no_rotation_is_both_in_the_box_and_out_of_distribution() -> None:
    """SciPy's angles are the canonical ones, the middle one in [−π/2, π/2]: the box is a box of them."""
    half, slack = math.pi / 2, 2e-3
    inside = Rotation.from_quat(drawn("euler").flatten(0, 1).numpy()).as_euler("xyz")
    assert (abs(inside) <= half + slack).all()
    assert abs(inside).max(axis=0).min() > 0.99 * half
    outside = Rotation.from_quat(drawn("ood").flatten(0, 1).numpy()).as_euler("xyz")
    assert (abs(outside[:, [0, 2]]) >= half - slack).all()
    assert abs(outside[:, [0, 2]]).max() > 0.99 * math.pi
    assert (outside.mean(axis=0) < 0.15).all()


def test_angles_that_all_leave_the_box_make_rotations_within_it() -> None:
    """Why "ood" keeps its middle angle: (a, b, c) is the rotation (a + π, π − b, c + π)."""
    angles = (1 + torch.rand(1000, 3)) * math.pi / 2 * torch.randint(2, (1000, 3)).mul(2).sub(1)
    assert (angles.abs() >= math.pi / 2).all()
    again = Rotation.from_euler("xyz", angles.double().numpy()).as_euler("xyz")
    assert (abs(again) <= math.pi / 2 + 1e-6).all()


def test_so3_is_uniform() -> None:
    q = drawn("so3", 20_000)
    angle = rotation_angles(q)
    expected = (angle - angle.sin()) / math.pi  # Haar measure's distribution function of the angle
    assert (expected - torch.linspace(0, 1, len(angle))).abs().max() < 1.63 / math.sqrt(len(angle))
    mean = Rotation3D.to_matrix(q).flatten(0, 1).mean(dim=0)
    assert mean.abs().max() < 0.02


def test_light_and_hues_are_uniform_in_their_ranges(objects: RenderedObjects) -> None:
    parameters = objects.draw(torch.arange(64), num_views=100, generator=generator())
    for name, high in (("floor_hue", 1), ("light_hue", 1), ("light_theta", math.pi / 4), ("light_phi", 2 * math.pi)):
        values = getattr(parameters, name).flatten().sort().values / high
        assert (values - torch.linspace(0, 1, len(values))).abs().max() < 1.63 / math.sqrt(len(values)), name


def signature(objects: RenderedObjects) -> set[tuple[float, ...]]:
    return {tuple(row) for row in objects.solids.centre.flatten(1).tolist()}


def test_a_validation_instance_is_never_a_training_one() -> None:
    train, val = (RenderedObjects(2000, size=1, split=split) for split in ("train", "val"))
    assert len(signature(train)) == len(signature(val)) == 2000
    assert not signature(train) & signature(val)
    numbers = torch.cat([instance_numbers(torch.arange(start, 40_000, 2), 0, 2) for start in (0, 1)])
    assert len({tuple(row) for row in numbers.tolist()}) == 40_000


def test_an_object_is_its_seed_and_its_number_whatever_the_others() -> None:
    few, many, other = RenderedObjects(5, size=1), RenderedObjects(500, size=1), RenderedObjects(5, size=1, seed=1)
    for a, b in zip(few.solids, many.solids.at(torch.arange(5)), strict=True):
        assert torch.equal(a, b)
    assert not signature(few) & signature(other)
    assert few.class_names == tuple(CLASSES)
    assert many.labels.bincount().max() - many.labels.bincount().min() <= 1
    assert len(few.class_names) >= 12


def slow_numbers(identity: int, seed: int, count: int) -> list[float]:
    def mix(word: int) -> int:
        word ^= word >> 16
        word = word * 0x7FEB352D % 2**32
        word ^= word >> 15
        word = word * 0x846CA68B % 2**32
        return word ^ (word >> 16)

    key = mix(mix(seed % 2**32) ^ (seed >> 32))
    keys = [mix(key ^ mix((k + 1) * 0x9E3779B9 % 2**32)) for k in range(count)]
    words = [mix((mix(identity ^ keys[k]) + keys[-1 - k]) % 2**32) for k in range(count)]
    return [(word >> 8) / 2**24 for word in words]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), st.integers(1, 30))
def test_the_numbers_of_an_instance_are_a_fixed_hash(identity: int, seed: int, count: int) -> None:
    got = instance_numbers(torch.tensor([identity]), seed, count)[0].tolist()
    assert got == slow_numbers(identity, seed, count)


def test_the_numbers_of_instances_are_uniform_and_unrelated() -> None:
    assert [round(number, 5) for number in slow_numbers(0, 0, 3)] == [0.14114, 0.50423, 0.70253]  # for ever
    numbers = instance_numbers(torch.arange(20_000), 7, 24)
    line = torch.linspace(0, 1, 20_000)[:, None]
    assert (numbers.sort(dim=0).values - line).abs().max() < 1.9 / math.sqrt(20_000)
    correlation = torch.corrcoef(torch.cat([numbers, numbers.roll(1, dims=0)], dim=1).T) - torch.eye(48)
    assert correlation.abs().max() < 4.5 / math.sqrt(20_000)


def test_every_object_fits_the_unit_ball_and_the_picture() -> None:
    objects = RenderedObjects(320, size=32, rotations="so3")
    kind, centre, frame, taper, albedo = objects.solids
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    reach = (centre[:, :, None] + torch.einsum("npij,sj->npsi", frame, signs)).norm(dim=-1).amax(dim=2)
    largest = reach.masked_fill(kind == EMPTY, 0).amax(dim=1)
    torch.testing.assert_close(largest, torch.ones(320))
    assert ((taper >= 0) & (taper <= 1)).all()
    assert ((albedo >= 0) & (albedo <= 1)).all()
    dot = frame.mT @ frame
    assert (dot - torch.diag_embed(dot.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-5  # half axes at right angles
    parameters = objects.draw(torch.arange(320), num_views=1, generator=generator())
    light = Light.above(parameters.light_theta[:, 0], parameters.light_phi[:, 0], parameters.light_hue[:, 0])
    rotation = Rotation3D.to_matrix(parameters.rotation[:, 0])
    layers = render_solids(objects.solids, rotation, objects.camera, light, size=32)
    border = layers.coverage.clone()
    border[..., 1:-1, 1:-1] = 0
    assert border.sum() == 0
    assert layers.coverage.mean(dim=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("rays", [1, 7 * 32**2, 64 * 32**2])
def test_pixels_do_not_depend_on_how_a_batch_is_cut(rays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = RenderedObjects(48, size=16)
    batch = objects.sample(torch.arange(48), num_views=3, generator=generator())
    monkeypatch.setitem(collection.RAYS_AT_A_TIME, "cpu", rays)
    assert torch.equal(objects.render(batch.parameters), batch.views)
    part = type(batch.parameters)(*(field[17:18] for field in batch.parameters))
    assert torch.equal(objects.render(part), batch.views[17:18])


def test_one_seed_one_batch_and_the_global_generator_is_left_alone(objects: RenderedObjects) -> None:
    state = torch.get_rng_state()
    a, b, c = (objects.sample(torch.arange(8), num_views=3, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.views, b.views)
    assert torch.equal(a.actions, b.actions)
    assert not torch.equal(a.actions, c.actions)
    RenderedObjects(16, size=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    first = objects.sample(torch.arange(2), num_views=2)
    torch.manual_seed(3)
    assert torch.equal(objects.sample(torch.arange(2), num_views=2).views, first.views)


def test_a_camera_in_double_precision_sees_the_same() -> None:
    camera = Camera.facing(elevation=0.3)
    double = Camera(camera.position.double(), camera.axes.double().requires_grad_(), camera.half_width)
    pictures = [
        RenderedObjects(16, size=8, camera=c).sample(torch.arange(4), num_views=2, generator=generator()).views
        for c in (camera, double)
    ]
    assert torch.equal(*pictures)


def test_one_instance_and_an_empty_batch_work() -> None:
    objects = RenderedObjects(1, size=8)
    assert objects.sample(torch.zeros(3, dtype=torch.int32), num_views=2).views.shape == (3, 2, 3, 8, 8)
    assert objects.sample(torch.zeros(0, dtype=torch.int64), num_views=2).views.shape == (0, 2, 3, 8, 8)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_instances": 0}, r"at least one instance and one pixel; got num_instances=0, size=8"),
    ({"size": 0}, r"at least one instance and one pixel; got num_instances=4, size=0"),
    ({"seed": -1}, r"seed must be in \[0, 2\*\*63\); got -1"),
    ({"split": "test"}, r"split must be one of 'train', 'val'; got 'test'"),
    ({"rotations": "yaw"}, r"rotations must be one of 'euler', 'so3', 'ood'; got 'yaw'"),
    ({"samples": 3}, r"samples must be one of 1, 2, 4, 8; got 3"),
    ({"actions": "rotation"}, r"tuple of different names, such as \('rotation',\); got 'rotation'"),
    ({"actions": ("rotation", "rotation")}, r"tuple of different names"),
    ({"actions": ()}, r"tuple of different names, such as \('rotation',\); got \(\)"),
    ({"actions": ("rotation", "size")}, r"actions must be one of 'rotation', 'floor_hue', 'light_hue'; got 'size'"),
    ({"camera": Camera(torch.tensor([0.0, 0.5, 0.0]), torch.eye(3), 0.3)}, r"outside the unit ball, above the floor"),
    ({"camera": Camera(torch.tensor([0.0, 0.0, -4.0]), torch.eye(3), 0.3)}, r"above the floor at z = -1"),
    ({"camera": Camera(torch.tensor([0.0, 0.0, math.inf]), torch.eye(3), 0.3)}, r"got position \[0.0, 0.0, inf\]"),
    ({"camera": Camera(torch.tensor([0.0, 0.0, 4.0]), -torch.eye(3), 0.3)}, r"at right angles and right-handed"),
])  # fmt: skip
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RenderedObjects(**{"num_instances": 4, "size": 8} | change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"num_instances": 16.5}, {"size": 8.0}, {"seed": 1.5}])
def test_numbers_that_are_not_whole_are_refused(change: dict[str, float]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(TypeError, match=f"{name} must be a whole number; got {value}"):
        RenderedObjects(**{"num_instances": 4, "size": 8} | change)  # type: ignore[arg-type]


def test_wrong_calls_are_refused(objects: RenderedObjects) -> None:
    with pytest.raises(ValueError, match=r"numbered from 0 to 63; got 3 to 64\. Make the collection with a larger"):
        objects.sample(torch.tensor([3, 64]), num_views=2)
    with pytest.raises(ValueError, match=r"numbered from 0 to 63; got -1 to -1"):
        objects.sample(torch.tensor([-1]), num_views=2)
    with pytest.raises(ValueError, match=r"\(B,\) tensor of whole numbers; got torch.float32 of shape \(2,\)"):
        objects.sample(torch.rand(2), num_views=2)
    with pytest.raises(ValueError, match=r"\(B,\) tensor of whole numbers; got torch.int64 of shape \(\)"):
        objects.sample(torch.tensor(3), num_views=2)
    with pytest.raises(TypeError, match=r"instance must be a torch.Tensor; got list"):
        objects.sample([1, 2], num_views=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_views counts the observed views and the predicted one"):
        objects.sample(torch.tensor([1]), num_views=1)
    with pytest.raises(ValueError, match=r"num_views must be at least 1; got 0"):
        objects.draw(torch.tensor([1]), num_views=0)
    parameters = objects.draw(torch.arange(3), num_views=2)
    with pytest.raises(ValueError, match=r"floor_hue must have the shape \(3, 2\) for 3 instances; got \(3,\)"):
        objects.render(parameters._replace(floor_hue=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"rotation must have the shape \(3, -1, 4\) for 3 instances; got \(3, 4\)"):
        objects.render(parameters._replace(rotation=parameters.rotation[:, 0]))
    with pytest.raises(ValueError, match=r"Quaternions must have length 1"):
        objects.render(parameters._replace(rotation=2 * parameters.rotation))
    with pytest.raises(ValueError, match=r"from the vertical, must be in \[0, 1.3\] radians; got 2 to 2"):
        objects.render(parameters._replace(light_theta=torch.full((3, 2), 2.0)))
    for name, value in (("floor_hue", math.nan), ("light_hue", math.inf), ("light_phi", math.nan)):
        with pytest.raises(ValueError, match=r"light_hue and light_phi must be finite; got NaN or infinity"):
            objects.render(parameters._replace(**{name: torch.full((3, 2), value)}))


def test_rendering_is_not_differentiable_and_says_so(objects: RenderedObjects) -> None:
    parameters = objects.draw(torch.arange(3), num_views=2, generator=generator())
    traced = parameters._replace(rotation=parameters.rotation.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"not differentiable; rotation requires gradients.*torch\.no_grad\(\)"):
        objects.render(traced)
    with torch.no_grad():
        assert torch.equal(objects.render(traced), objects.render(parameters))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_pictures() -> None:
    cpu, gpu = RenderedObjects(64, size=32), RenderedObjects(64, size=32, device="cuda")
    a = cpu.sample(torch.arange(64), num_views=3, generator=generator())
    b = gpu.sample(torch.arange(64), num_views=3, generator=generator())
    assert b.views.is_cuda
    assert b.labels is not None
    assert b.labels.is_cuda
    torch.testing.assert_close(a.actions, b.actions.cpu(), atol=1e-5, rtol=0)
    different = (a.views - b.views.cpu()).abs().amax(dim=2) > 1e-3
    assert different.double().mean() < 1e-3
    camera = Camera.facing().to("cuda")
    assert RenderedObjects(16, size=8, camera=camera, device="cuda").camera.axes.is_cuda
    on_gpu = torch.Generator("cuda").manual_seed(0)
    assert gpu.sample(torch.arange(4), num_views=2, generator=on_gpu).views.isfinite().all()
