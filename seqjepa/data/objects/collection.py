"""A collection of objects to draw views of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa._checks import check_tensor
from seqjepa.data._images import check_num_views
from seqjepa.data._parameters import ObjectParameters
from seqjepa.data._random import for_each, sent, uniform
from seqjepa.data.objects.render import Camera, Light, lay_over_floor, render_solids
from seqjepa.data.objects.shapes import CLASSES, build
from seqjepa.groups import Group, Hue, Product, Rotation3D
from seqjepa.groups.rotations import canonical
from seqjepa.types import ViewSequence

__all__ = ["RenderedObjects"]

SPLITS = ("train", "val")
SAMPLES = (1, 2, 4, 8)
ACTIONS: dict[str, Group] = {"rotation": Rotation3D(), "floor_hue": Hue(), "light_hue": Hue()}
LIGHT = ((0.0, math.pi / 4), (0.0, 2 * math.pi))  # theta and phi, as in 3DIEBench
MAX_THETA = 1.3  # of a lamp that is higher than the top of the object
# Rays of pictures that are cast at a time. On a CPU their temporaries should stay in the cache, on a GPU fill it.
RAYS_AT_A_TIME = {"cpu": 2**19, "cuda": 2**24}

Draw = Callable[[Float[Tensor, "B V 3"]], Float[Tensor, "B V 4"]]


def _ood(angles: Tensor) -> Tensor:
    """The first and the last angle outside the box.

    Not all three, as 3DIEBench-OOD is described: (a, b, c) is the same rotation as (a + π, π − b, c + π), so that with
    every angle outside, the rotations are just those of the box again.
    """
    away = torch.full_like(angles, math.pi / 2).copysign(angles)
    away[..., 1] = 0
    return Rotation3D.from_euler(angles + away)


def _so3(angles: Tensor) -> Tensor:
    """Shoemake's: three uniform numbers to a uniform quaternion."""
    a, b, c = (angles / math.pi + 0.5).unbind(-1)
    b, c = 2 * math.pi * b, 2 * math.pi * c
    p, q = (1 - a).sqrt(), a.sqrt()
    return canonical(torch.stack([p * b.sin(), p * b.cos(), q * c.sin(), q * c.cos()], dim=-1))


ROTATIONS: dict[str, Draw] = {"euler": Rotation3D.from_euler, "so3": _so3, "ood": _ood}


class RenderedObjects:
    """Objects of 16 classes, to be seen turned in any way: a stand-in for 3DIEBench that needs no download.

    Every object is put together from boxes, ellipsoids and cylinders, its proportions drawn for it alone, and cast in
    perspective, with a lamp, a floor and a shadow. What makes a view is drawn for each view anew: rotation, the lamp's
    direction and hue, the floor's hue. The objects are grey, so that no colour tells them apart. Instance i is of class
    i mod 16, whatever the number of instances, and a seed gives the same objects for ever.

    Args:
        num_instances: N, at least 1. Classes are balanced to within one instance.
        size: S, side of a view in pixels.
        seed: of the objects, not of their views.
        split: "train" or "val": other objects of the same classes, never the same.
        rotations: "euler", extrinsic x, y, z angles uniform in [−π/2, π/2] as in 3DIEBench; "ood", rotations that
            these never are: x and z angles in [−π, −π/2] or [π/2, π]; "so3", uniform over all rotations.
        actions: the parameters whose change the action tells: names of "rotation", "floor_hue", "light_hue". Of one,
            the action is an element of its group; of several, their elements stand side by side.
        samples: rays along each side of a pixel, 1, 2, 4 or 8: above 1, edges are smooth.
        camera: None for the default one, 30° above the horizontal.
        device: where views are rendered.

    Attributes:
        class_names: the 16 names, in the order of the labels.
        labels: (N,) the class of each instance.
        group: the group of the actions.

    Raises:
        ValueError: no instances or pixels; a negative seed; an unknown split, kind of rotation, or action; a camera
            that cannot see the object.
        TypeError: a number of instances, a size or a seed that is not whole.

    Source:
        Rotations, hues and the lamp's angles are drawn as in Garrido et al. 2023 (arXiv 2302.10283), 3DIEBench.

    Examples:
        >>> import torch
        >>> objects = RenderedObjects(num_instances=2000, size=32, seed=0)
        >>> g = torch.Generator().manual_seed(0)
        >>> batch = objects.sample(torch.arange(64), num_views=4, generator=g)
        >>> batch.views.shape, batch.actions.shape, objects.class_names[batch.labels[5]]
        (torch.Size([64, 4, 3, 32, 32]), torch.Size([64, 3, 4]), 'chair')
        >>> torch.equal(objects.render(batch.parameters), batch.views)
        True
    """

    def __init__(
        self,
        num_instances: int,
        *,
        size: int,
        seed: int = 0,
        split: str = "train",
        rotations: str = "euler",
        actions: Sequence[str] = ("rotation",),
        samples: int = 2,
        camera: Camera | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, number in (("num_instances", num_instances), ("size", size), ("seed", seed)):
            if not isinstance(number, Integral):
                raise TypeError(f"{name} must be a whole number; got {number!r}. Convert it with int().")
        if num_instances < 1 or size < 1:
            raise ValueError(f"There must be at least one instance and one pixel; got {num_instances=}, {size=}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63); got {seed}.")
        _check_one_of("split", split, SPLITS)
        _check_one_of("rotations", rotations, ROTATIONS)
        _check_one_of("samples", samples, SAMPLES)
        if isinstance(actions, str) or not actions or len(set(actions)) < len(actions):
            raise ValueError(f"actions must be a tuple of different names, such as ('rotation',); got {actions!r}.")
        for name in actions:
            _check_one_of("each of actions", name, ACTIONS)
        self.size, self.seed, self.split, self.rotations = size, seed, split, rotations
        self.actions, self.samples, self.device = tuple(actions), samples, torch.device(device)
        self.group = ACTIONS[actions[0]] if len(actions) == 1 else Product({name: ACTIONS[name] for name in actions})
        self.class_names = tuple(CLASSES)
        self.camera = (Camera.facing() if camera is None else camera).check().to(self.device)
        instance = torch.arange(num_instances, device="cpu")
        labels = instance % len(CLASSES)
        # Train and validation take every other identity, and different identities are different objects.
        self.solids = build(2 * instance + SPLITS.index(split), labels, seed).to(self.device)
        self.labels = labels.to(self.device)

    def __len__(self) -> int:
        """N, the number of instances."""
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"RenderedObjects(num_instances={len(self)}, size={self.size}, seed={self.seed}, split={self.split!r}, "
            f"rotations={self.rotations!r}, actions={self.actions}, samples={self.samples}, "
            f"device={str(self.device)!r})"
        )

    def sample(
        self,
        instance: Int[Tensor, "B"],
        *,
        num_views: int,
        generator: torch.Generator | None = None,
        shared: bool = False,
    ) -> ViewSequence:
        """Draw views of these instances.

        Args:
            instance: (B,) numbers in [0, N), on any device; one may come more than once.
            num_views: T+1, at least 2.
            generator: on any device.
            shared: one draw of what `actions` names for all instances: each goes through the same actions, the same
                whatever B is. What actions do not tell, such as the lamp, is drawn for each view.

        Returns:
            views (B, T+1, 3, S, S) in [0, 1]; actions (B, T, A); parameters, the
            [`ObjectParameters`][seqjepa.data.ObjectParameters] of each view; labels (B,); the actions' group.
        """
        check_num_views(num_views)
        parameters = self.draw(instance, num_views=num_views, generator=generator, shared=shared)
        actions = self.group.actions(self.elements(parameters))
        if shared:
            actions = for_each(len(actions), actions[:1])
        views = self._render(parameters)
        return ViewSequence(views, actions, parameters, self.labels[parameters.instance], self.group)

    def draw(
        self,
        instance: Int[Tensor, "B"],
        *,
        num_views: int,
        generator: torch.Generator | None = None,
        shared: bool = False,
    ) -> ObjectParameters:
        """Draw the parameters of views without rendering them, to be rendered as they are or with some of them changed.

        Args:
            instance: (B,) numbers in [0, N).
            num_views: V, at least 1.
            generator: on any device.
            shared: one draw of what `actions` names for all instances.

        Examples:
            >>> objects = RenderedObjects(16, size=32)
            >>> parameters = objects.draw(torch.arange(16), num_views=2)
            >>> one_floor = parameters._replace(floor_hue=torch.full((16, 2), 0.6))
            >>> objects.render(one_floor).shape
            torch.Size([16, 2, 3, 32, 32])
        """
        instance = self._check_instance(instance)
        if num_views < 1:
            raise ValueError(f"num_views must be at least 1; got {num_views}.")
        if shared:
            one = self.draw(instance[:1], num_views=num_views, generator=generator)
            each = self.draw(instance, num_views=num_views, generator=generator)
            return each._replace(**{name: for_each(len(instance), getattr(one, name)) for name in self.actions})
        shape = (len(instance), num_views)
        angles = uniform((*shape, 3), -math.pi / 2, math.pi / 2, generator=generator, device=self.device)
        floor_hue, light_hue = uniform((2, *shape), generator=generator, device=self.device)
        theta, phi = (uniform(shape, *limits, generator=generator, device=self.device) for limits in LIGHT)
        return ObjectParameters(ROTATIONS[self.rotations](angles), floor_hue, light_hue, theta, phi, instance)

    def elements(self, parameters: ObjectParameters) -> Float[Tensor, "B V A"]:
        """What the actions are taken from: the parameters that `actions` names, side by side, as elements of the group.

        Examples:
            >>> objects = RenderedObjects(16, size=32, actions=("rotation", "floor_hue"))
            >>> batch = objects.sample(torch.arange(16), num_views=3)
            >>> torch.equal(objects.group.actions(objects.elements(batch.parameters)), batch.actions)
            True
        """
        parts = {name: getattr(parameters, name) for name in self.actions}
        return torch.cat([part if name == "rotation" else part[..., None] for name, part in parts.items()], dim=-1)

    def render(self, parameters: ObjectParameters) -> Float[Tensor, "B V 3 S S"]:
        """The views that these parameters make, in [0, 1]: the same pixels, whatever else is in the batch.

        Rendering is not differentiable: views have no gradient by the parameters.

        Args:
            parameters: of V views of B instances; hues count modulo 1.

        Raises:
            ValueError: instances that are not there; quaternions whose length is not 1; a lamp that is not above the
                object, theta in [0, 1.3]; hues or light_phi that are not finite; fields of other shapes, or that
                require gradients.
        """
        instance = self._check_instance(parameters.instance)
        shape = (len(instance), parameters.rotation.shape[1] if parameters.rotation.ndim == 3 else -1)
        for name, field in parameters._asdict().items():
            expected = {"instance": shape[:1], "rotation": (*shape, 4)}.get(name, shape)
            if field.shape != expected:
                raise ValueError(
                    f"{name} must have the shape {expected} for {shape[0]} instances; got {tuple(field.shape)}."
                )
        traced = [name for name, field in parameters._asdict().items() if field.requires_grad]
        if traced and torch.is_grad_enabled():
            raise ValueError(
                f"Rendering is not differentiable; {', '.join(traced)} requires gradients. Render under "
                "torch.no_grad()."
            )
        theta = parameters.light_theta
        if not bool(((theta >= 0) & (theta <= MAX_THETA)).all()):
            raise ValueError(
                f"light_theta, the lamp's angle from the vertical, must be in [0, {MAX_THETA}] radians; "
                f"got {theta.min().item():.3g} to {theta.max().item():.3g}."
            )
        if not all(bool(field.isfinite().all()) for field in (*parameters[1:3], parameters.light_phi)):
            raise ValueError("floor_hue, light_hue and light_phi must be finite; got NaN or infinity.")
        return self._render(parameters._replace(instance=instance))

    def _render(self, parameters: ObjectParameters) -> Tensor:
        """A part of the views at a time."""
        shape = parameters.light_theta.shape
        of = parameters.instance[:, None].expand(shape).flatten()
        rotation = Rotation3D.to_matrix(sent(parameters.rotation.float(), self.device)).flatten(0, 1)
        floor_hue, light_hue, theta, phi = (sent(field.float(), self.device).flatten() for field in parameters[1:5])
        lights = Light.above(theta, phi, light_hue)
        rays = (self.size * self.samples) ** 2
        chunk = max(1, RAYS_AT_A_TIME.get(self.device.type, RAYS_AT_A_TIME["cuda"]) // rays)
        if self.device.type == "cpu":
            chunk = min(chunk, 128)
        views = torch.empty((len(of), 3, self.size, self.size), dtype=torch.float32, device=self.device)
        for start in range(0, len(of), chunk):
            rows = slice(start, start + chunk)
            light = Light(lights.position[rows], lights.hue[rows])
            solids = self.solids.at(of[rows])
            layers = render_solids(solids, rotation[rows], self.camera, light, size=self.size, samples=self.samples)
            views[rows] = lay_over_floor(layers, floor_hue[rows], self.camera, light)
        return views.unflatten(0, shape)

    def _check_instance(self, instance: Tensor) -> Int[Tensor, "B"]:
        check_tensor("instance", instance)
        if instance.ndim != 1 or instance.is_floating_point() or instance.dtype == torch.bool:
            raise ValueError(
                "instance must be a (B,) tensor of whole numbers; "
                f"got {instance.dtype} of shape {tuple(instance.shape)}."
            )
        instance = instance.to(torch.int64)  # read where they lie: mostly on the CPU, where nothing is waited for
        if len(instance) and not bool(((instance >= 0) & (instance < len(self))).all()):
            raise ValueError(
                f"Instances are numbered from 0 to {len(self) - 1}; "
                f"got {int(instance.min())} to {int(instance.max())}. Make the collection with a larger num_instances."
            )
        return sent(instance, self.device)


def _check_one_of(name: str, value: object, known: Sequence[object] | dict[str, Draw] | dict[str, Group]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}.")
