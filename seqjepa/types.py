"""The two results that travel between floors, and the axis glossary.

One letter, one meaning, everywhere in the package:

| axis    | meaning                                                        |
|---------|----------------------------------------------------------------|
| B       | batch: one source (image, object, scene) a row                 |
| T       | observed views of a source; the paper's M. Time is axis 1      |
| A       | numbers in an action                                           |
| E       | width of an action embedding                                   |
| D       | width of the encoder's output                                  |
| S       | width of the aggregate, D + E                                  |
| C, H, W | channels, height, width of an image                            |
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["SeqJEPAOutput", "ViewSequence"]


class ViewSequence(NamedTuple):
    """Views of one source a row, the actions between them, and what made each view.

    Attributes:
        views: (B, T+1, C, H, W), float in [0, 1].
        actions: (B, T, A); `actions[:, t]` takes view t to view t+1.
        parameters: the absolute transformation of each view, where the source of the views knows it: a tensor
            (B, T+1, …), or a NamedTuple of such tensors.
        labels: (B,) class of each source, where it is known.
        group: the [group][seqjepa.groups.Group] that the actions are elements of, where it is known.

    Examples:
        >>> import torch
        >>> batch = ViewSequence(torch.rand(8, 4, 3, 32, 32), torch.randn(8, 3, 4))
        >>> views, actions, *_ = batch
        >>> views.shape[1] - actions.shape[1]
        1
    """

    views: Float[Tensor, "B views *image"]
    actions: Float[Tensor, "B T A"]
    parameters: Any = None
    labels: Tensor | None = None
    group: Any = None


class SeqJEPAOutput(NamedTuple):
    """What one forward pass of [`SeqJEPA`][seqjepa.SeqJEPA] leaves.

    Attributes:
        loss: () scalar to call `.backward()` on.
        prediction: (B, D) predicted representation of the last view.
        target: (B, D) target encoder's representation of the last view, without gradient.
        state: (B, S) aggregate of the observed views: the invariant representation.
        z: (B, T, D) encoder outputs of the observed views: the equivariant representation.
        terms: the parts of the loss by name, () each, detached: for logging.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> out = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=True)(
        ...     torch.rand(4, 3, 3, 32, 32), torch.randn(4, 2, 4))
        >>> out.state.shape, list(out.terms)
        (torch.Size([4, 640]), ['distance'])
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "B D"]
    target: Float[Tensor, "B D"]
    state: Float[Tensor, "B S"]
    z: Float[Tensor, "B T D"]
    terms: dict[str, Tensor]
