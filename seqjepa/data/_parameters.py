"""What made each view of a 3D object: shared by the renderer and the reader of 3DIEBench."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["ObjectParameters"]


class ObjectParameters(NamedTuple):
    """The absolute parameters of V views of B objects.

    Attributes:
        rotation: (B, V, 4) unit quaternions x y z w with w ≥ 0, from the object's own frame.
        floor_hue: (B, V) hue of the floor in turns, in [0, 1).
        light_hue: (B, V) hue of the light in turns, in [0, 1).
        light_theta: (B, V) angle between the light and the vertical, in radians; 3DIEBench draws it in [0, π/4].
        light_phi: (B, V) angle of the light about the vertical, in radians; 3DIEBench draws it in [0, 2π].
        instance: (B,) number of the object in its dataset.

    Examples:
        >>> import torch
        >>> from seqjepa.data import RenderedObjects
        >>> from seqjepa.groups import Rotation3D
        >>> turn, zeros = torch.zeros(1, 8, 3), torch.zeros(1, 8)
        >>> turn[..., 2] = torch.arange(8) * torch.pi / 4                                # a chair on a turntable
        >>> chair = ObjectParameters(Rotation3D.from_euler(turn), zeros + 0.6, zeros, zeros, zeros, torch.tensor([5]))
        >>> RenderedObjects(16, size=32).render(chair).shape
        torch.Size([1, 8, 3, 32, 32])
    """

    rotation: Float[Tensor, "B V 4"]
    floor_hue: Float[Tensor, "B V"]
    light_hue: Float[Tensor, "B V"]
    light_theta: Float[Tensor, "B V"]
    light_phi: Float[Tensor, "B V"]
    instance: Int[Tensor, "B"]
