"""Camera, light, shading and floor: turned objects → pictures.

All is worked out in the camera's frame, x right, y down, z forward, where a pixel's ray runs along `(u, v, 1)`. The
shadow on the floor needs no second renderer: from the lamp, the points of the floor that the pixels show lie along
`E @ (u, v, 1)` as well, with a matrix E for each view, so the rays from the lamp are cast as those from the camera.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.data._random import constant
from seqjepa.data.objects.assembly import Solids
from seqjepa.data.objects.cast import TILE, Grid, Hits, Parts, cast
from seqjepa.data.objects.primitives import outward

__all__ = ["Camera", "Layers", "Light", "hue_to_rgb", "lay_over_floor", "render_solids"]

FLOOR = -1.0  # its height in the world: it touches the ball that holds the object
AMBIENT, FILL, KEY = 0.22, 0.28, 0.75  # light from everywhere, from the camera, and from the lamp
FLOOR_ALBEDO, FLOOR_SATURATION, LIGHT_SATURATION = 0.85, 0.55, 0.4
HORIZON = 0.05  # a ray that sinks less than this share of its forward way shows the floor no farther away


class Camera(NamedTuple):
    """A pinhole camera, the same for all views.

    Attributes:
        position: (3,) in the world, outside the ball of radius 1 that holds the object.
        axes: (3, 3), its rows the directions right, down and forward in the world: a rotation.
        half_width: tangent of half the angle of view.

    Examples:
        >>> from seqjepa.data import RenderedObjects
        >>> above = RenderedObjects(16, size=32, camera=Camera.facing(elevation=1.2))      # nearly straight down
        >>> Camera.facing().position.norm()
        tensor(4.)
    """

    position: Float[Tensor, "3"]
    axes: Float[Tensor, "3 3"]
    half_width: float

    @staticmethod
    def facing(elevation: float = math.radians(30), distance: float = 4.0, fill: float = 0.9) -> Camera:
        """In front of the object (at negative y) and above it, looking at the origin.

        Args:
            elevation: angle above the horizontal, radians.
            distance: from the origin, above 1.
            fill: radius of the unit ball's outline, over half the side of the picture.

        Examples:
            >>> Camera.facing(elevation=0.0).position
            tensor([-0., -4.,  0.])
        """
        cos, sin = math.cos(elevation), math.sin(elevation)
        axes = constant([[1, 0, 0], [0, -sin, -cos], [0, cos, -sin]], "cpu")
        return Camera(-distance * axes[2], axes, 1 / (distance**2 - 1) ** 0.5 / fill)

    def check(self) -> Camera:
        """Itself, or a ValueError where it could not see what it should."""
        position, axes = (part.detach().to("cpu", torch.float32) for part in (self.position, self.axes))
        if not (1 < position.norm() < math.inf and position[2] > FLOOR and 0 < self.half_width < math.inf):
            raise ValueError(
                f"A camera is outside the unit ball, above the floor at z = {FLOOR:g}, with an angle of view above 0; "
                f"got position {position.tolist()} and half_width {self.half_width}."
            )
        identity = torch.eye(3, dtype=axes.dtype, device="cpu")
        if not torch.allclose(axes @ axes.T, identity, atol=1e-4) or torch.linalg.det(axes) < 0:
            raise ValueError(
                "A camera's axes are the unit rows right, down and forward, at right angles and right-handed; "
                f"got {axes.tolist()}."
            )
        return self

    def to(self, device: torch.device | str) -> Camera:
        """The same camera on another device, in float32 and without gradients, as rendering takes it."""
        position, axes = (part.detach().to(device, torch.float32) for part in (self.position, self.axes))
        return Camera(position, axes, self.half_width)


class Light(NamedTuple):
    """A point light for each view.

    Attributes:
        position: (V, 3) in the world, outside the ball that holds the object and above the floor.
        hue: (V,) in turns.
    """

    position: Float[Tensor, "V 3"]
    hue: Float[Tensor, "V"]

    @staticmethod
    def above(
        theta: Float[Tensor, "V"], phi: Float[Tensor, "V"], hue: Float[Tensor, "V"], distance: float = 4.0
    ) -> Light:
        """At `theta` from the vertical and `phi` about it, radians, from x towards y.

        Examples:
            >>> Light.above(torch.zeros(1), torch.zeros(1), torch.zeros(1)).position
            tensor([[0., 0., 4.]])
        """
        sin = theta.sin()
        return Light(distance * torch.stack([sin * phi.cos(), sin * phi.sin(), theta.cos()], dim=-1), hue)


class Layers(NamedTuple):
    """Pictures of objects before they are laid over the floor.

    Attributes:
        colour: (V, 3, S, S) of the object, times its coverage.
        coverage: (V, 1, S, S) share of each pixel that the object covers, in [0, 1].
        shadow: (V, 1, S, S) share of the lamp's light that the object keeps from the floor there, in [0, 1].
    """

    colour: Float[Tensor, "V 3 S S"]
    coverage: Float[Tensor, "V 1 S S"]
    shadow: Float[Tensor, "V 1 S S"]


def render_solids(
    solids: Solids, rotation: Float[Tensor, "V 3 3"], camera: Camera, light: Light, *, size: int, samples: int = 2
) -> Layers:
    """Cast one object a view, and its shadow.

    Args:
        solids: V objects, one a view.
        rotation: (V, 3, 3), which turn the objects in the world.
        camera: the same for all views.
        light: one a view.
        size: S, side of the pictures in pixels.
        samples: along each side of a pixel; 1, 2, 4 or 8.
    """
    parts = _in_camera(solids, rotation, camera)
    lamp = _turned(camera, light.position - camera.position)
    same = torch.eye(3, dtype=lamp.dtype, device=lamp.device).expand(len(lamp), 3, 3)
    grid = Grid(size, samples, camera.half_width)
    hits = cast(parts, torch.zeros_like(lamp), same, same, grid)
    paint = _lay_out(_shade(parts, hits, light, lamp, grid), hits.tile, len(lamp), grid)
    down, height = _floor(camera)
    outer = lamp[:, :, None] * down
    above = (height - (lamp * down).sum(dim=1))[:, None, None]
    to_floor, from_floor = height * same - outer, (same + outer / above) / height
    grid = Grid(size, 1, camera.half_width)
    hits = cast(parts, lamp, to_floor, from_floor, grid)
    dark = (hits.depth < torch.inf).to(torch.float32)[None]
    shadow = _lay_out(dark, hits.tile, len(lamp), grid)
    shadow = F.avg_pool2d(shadow, 3, stride=1, padding=1, count_include_pad=False)  # soft edges
    return Layers(paint[:, :3], paint[:, 3:], shadow)


def lay_over_floor(
    layers: Layers, floor_hue: Float[Tensor, "V"], camera: Camera, light: Light
) -> Float[Tensor, "V 3 S S"]:
    """Finish pictures: a floor in its hue, lit by the lamp and shadowed, under the objects.

    The lamp's share is Lambert's cosine over the squared distance, 1 for a surface at the origin that faces the lamp.
    """
    size = layers.colour.shape[-1]
    at = Grid(size, 1, camera.half_width).at(torch.arange(size, device=floor_hue.device))
    v, u = torch.meshgrid(at, at, indexing="ij")
    ray = torch.stack([u, v, torch.ones_like(u)])
    down, height = _floor(camera)
    point = ray * (height / (ray * down[:, None, None]).sum(0).clamp(min=HORIZON))
    lamp = _turned(camera, light.position - camera.position)
    x, y, z = (2 * lamp[:, :, None, None] * point).unbind(1)
    squared = lamp.square().sum(1)[:, None, None] + point.square().sum(0) - x - y - z
    strength = (light.position.square().sum(1) * (height - (lamp * down).sum(dim=1)))[:, None, None]
    lit = (strength / (squared * squared.sqrt()))[:, None] * (1 - layers.shadow)
    albedo = (FLOOR_ALBEDO * hue_to_rgb(floor_hue, FLOOR_SATURATION))[:, :, None, None]
    tint = hue_to_rgb(light.hue, LIGHT_SATURATION)[:, :, None, None]
    floor = lit * (KEY * albedo * tint) + (AMBIENT + FILL / 2) * albedo
    return (layers.colour + (1 - layers.coverage) * floor).clamp_(0, 1)


def hue_to_rgb(hue: Float[Tensor, "*V"], saturation: float) -> Float[Tensor, "*V 3"]:
    """Red, green and blue of a hue in turns, (…) → (…, 3), at full value: the brightest of the three is 1.

    Examples:
        >>> hue_to_rgb(torch.tensor([0.0, 1 / 3]), saturation=1.0)
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    shifted = (hue[..., None] * 6 + constant([0.0, 4.0, 2.0], hue.device)) % 6
    return 1 - saturation * (1 - ((shifted - 3).abs() - 1).clamp(0, 1))


def _in_camera(solids: Solids, rotation: Float[Tensor, "V 3 3"], camera: Camera) -> Parts:
    turn = (camera.axes @ rotation)[:, None]
    frame = turn @ solids.frame
    squares = solids.frame.square().sum(dim=-2, keepdim=True).clamp(min=1e-12)  # columns are orthogonal
    centre = (turn @ solids.centre[..., None])[..., 0] - _turned(camera, camera.position)
    return Parts(solids.kind, centre, frame, (frame / squares).mT, solids.taper, solids.albedo)


def _turned(camera: Camera, vector: Float[Tensor, "*V 3"]) -> Float[Tensor, "*V 3"]:
    """A vector in the camera's frame; not by a matrix product, which rounds otherwise in a batch of another size."""
    return (vector[..., None, :] * camera.axes).sum(dim=-1)


def _floor(camera: Camera) -> tuple[Float[Tensor, "3"], Float[Tensor, ""]]:
    """The direction down in the camera's frame, and how far down from the camera the floor is."""
    return -camera.axes[:, 2], camera.position[2] - FLOOR


def _shade(parts: Parts, hits: Hits, light: Light, lamp: Float[Tensor, "V 3"], grid: Grid) -> Float[Tensor, "4 A rays"]:
    """Red, green, blue and coverage of every ray; zeros where it meets nothing."""
    found = (hits.depth < torch.inf).flatten().nonzero().flatten()
    part, depth = hits.part.flatten()[found], hits.depth.flatten()[found]
    tile, ray = hits.tile[found // TILE**2], found % TILE**2
    u = grid.at(tile % grid.tiles * TILE + ray % TILE)
    v = grid.at(tile // grid.tiles % grid.tiles * TILE + ray // TILE)
    point = torch.stack([u * depth, v * depth, depth])
    away = point - _pick(parts.centre, part)
    inverse = _pick(parts.inverse.flatten(2), part).unflatten(0, (3, 3))
    local = (inverse[:, 0] * away[0]).add_(inverse[:, 1] * away[1]).add_(inverse[:, 2] * away[2])
    gradient = outward(parts.kind.flatten()[part], local, parts.taper.flatten()[part])
    normal = (inverse[0] * gradient[0]).add_(inverse[1] * gradient[1]).add_(inverse[2] * gradient[2])
    view = part // parts.kind.shape[1]
    to_lamp = lamp.T.contiguous().index_select(1, view) - point
    length, squared = _dot(normal, normal).sqrt_(), _dot(to_lamp, to_lamp)
    facing = _dot(normal, point).neg_().div_(_dot(point, point).sqrt_().mul_(length)).clamp_(min=0)
    lit = _dot(normal, to_lamp).div_(squared.sqrt().mul_(squared).mul_(length)).clamp_(min=0)
    lit *= light.position.square().sum(dim=1)[view]
    albedo = parts.albedo.flatten()[part]
    plain = facing.mul_(FILL).add_(AMBIENT).mul_(albedo)
    tint = (KEY * hue_to_rgb(light.hue, LIGHT_SATURATION)).T.contiguous().index_select(1, view)
    paint = depth.new_zeros(4, hits.depth.numel())
    paint.index_copy_(1, found, torch.cat([tint.mul_(lit.mul_(albedo)).add_(plain), torch.ones_like(lit)[None]]))
    return paint.unflatten(1, hits.depth.shape)


def _pick(table: Float[Tensor, "V P K"], part: Int[Tensor, "N"]) -> Float[Tensor, "K N"]:
    """The numbers of these parts, one row a number."""
    return table.flatten(0, 1).T.contiguous().index_select(1, part)


def _lay_out(paint: Float[Tensor, "C A rays"], tile: Tensor, views: int, grid: Grid) -> Float[Tensor, "V C S S"]:
    """Average the samples of each pixel, and put the tiles where they belong; zeros elsewhere."""
    pixels, s = TILE // grid.samples, grid.samples
    blocks = paint.reshape(*paint.shape[:2], pixels, s, pixels, s)
    total = sum(blocks[:, :, :, i, :, j] for i in range(s) for j in range(s)) / s**2
    canvas = paint.new_zeros(paint.shape[0], views * grid.tiles**2, pixels, pixels)
    canvas[:, tile] = total
    canvas = canvas.unflatten(1, (views, grid.tiles, grid.tiles)).permute(1, 0, 2, 4, 3, 5)
    side = grid.tiles * pixels
    return canvas.reshape(views, -1, side, side)[..., : grid.size, : grid.size]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a[0] * b[0]).add_(a[1] * b[1]).add_(a[2] * b[2])
