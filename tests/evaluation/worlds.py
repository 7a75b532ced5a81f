"""Worlds that are known exactly, and models that know all or nothing of them."""

from typing import Any

import torch
from torch import Tensor

from seqjepa import ViewSequence
from seqjepa.evaluation import Features, extract
from seqjepa.groups import Rotation3D

GROUP = Rotation3D()
IDENTITY = 6  # numbers that say which source it is


def world(n: int = 300, views: int = 4, seed: int = 0, spread: float = 1.0) -> ViewSequence:
    """Views that are what they show: a rotation matrix and the source's own numbers, whose first gives the class."""
    g = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand(n, views, 3, generator=g) - 1) * spread
    q = Rotation3D.from_euler(angles)
    who = torch.randn(n, 1, IDENTITY, generator=g).expand(n, views, IDENTITY)
    shown = torch.cat([Rotation3D.to_matrix(q).flatten(2), who], dim=-1)
    return ViewSequence(shown, GROUP.actions(q), q, (who[:, 0, 0] > 0).long(), GROUP)


class Exact:
    """A model that computes what seq-JEPA learns: z shows the pose, the state sums the source up and where it is."""

    def encode(self, views: Tensor) -> Tensor:
        return views

    def target(self, views: Tensor) -> Tensor:
        return views

    def embed(self, actions: Tensor) -> Tensor:
        return actions

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        path = GROUP.path_composition(e) if e.abs().sum() else torch.zeros(len(z), 4)
        return torch.cat([z[:, -1, :9], z[..., 9:].mean(dim=1), path], dim=-1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        turned = state[:, :9].unflatten(1, (3, 3)) @ Rotation3D.to_matrix(e)
        return torch.cat([turned.flatten(1), state[:, 9 : 9 + IDENTITY]], dim=-1)


class Ignorant(Exact):
    """One that keeps the source's numbers and ignores pose and actions: invariant throughout."""

    def encode(self, views: Tensor) -> Tensor:
        return views[..., 9:] + 0

    def target(self, views: Tensor) -> Tensor:
        return views[..., 9:] + 0

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return z.mean(dim=1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return state


def both(model: Any, views: int = 4) -> tuple[Features, Features]:
    return extract(model, world(seed=0, views=views)), extract(model, world(seed=1, views=views))


def batches(sampler: Any, labels: Tensor, channels: int = 3, size: int = 8) -> ViewSequence:
    g = torch.Generator().manual_seed(int(labels.sum()))
    images = torch.rand(len(labels), channels, size, size, generator=g) * (0.3 + 0.7 * labels[:, None, None, None])
    sequence: ViewSequence = sampler(images, generator=g)
    return sequence._replace(labels=labels)
