"""Target encoders: where the representation to be predicted comes from, without gradient."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import unwrap
from seqjepa.encoders import encode_views

__all__ = ["EMATarget", "StopGradientTarget"]

Momentum = float | Callable[[int], float]


class EMATarget(nn.Module):
    """A copy of the encoder that follows it slowly: t ← m t + (1 − m) o after every step.

    The copy lives in its own storage, never requires a gradient, and stays in float32 when the encoder is in lower
    precision, where steps of (1 − m) would be rounded away. Its batch-norm statistics are, by `buffers`:

    - "own": gathered from the target's own batches. The target follows the model's training mode, so in training it
      normalises by its own batch. The paper's.
    - "copy": copied from the encoder at every update, with all its other buffers.
    - "ema": averaged like the weights; all other buffers are copied.

    With "own", dropout acts in the target too while it trains, as in the paper's (whose encoder has none). With "copy"
    and "ema" the target is always in eval mode: it normalises by those statistics and never moves them.

    Args:
        encoder: the encoder to copy, compiled or not; its weights of this moment are the start.
        momentum: m in [0, 1], or a schedule from the number of updates done to m, such as
            [`CosineSchedule(0.996, 1.0, total_steps)`][seqjepa.functional.CosineSchedule], the paper's.
        buffers: "own", "copy" or "ema".

    Shapes:
        views (B, …) → (B, D), whatever the encoder takes.

    Raises:
        ValueError: a momentum outside [0, 1]; unknown `buffers`; at an update, an encoder of another architecture.

    Source:
        Tarvainen & Valpola 2017 (arXiv 1703.01780); Grill et al. 2020 (arXiv 2006.07733); momentum after Ghaemi et al.
        2025, moved every step.

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Linear(3, 2)
        >>> target = EMATarget(encoder, momentum=0.5)
        >>> with torch.no_grad():
        ...     before = target.encoder.weight.clone()
        ...     _ = encoder.weight.add_(1.0)
        >>> target.update(encoder)
        >>> torch.allclose(target.encoder.weight, before + 0.5), target.step
        (True, 1)
    """

    encoder: Any

    def __init__(
        self, encoder: nn.Module, momentum: Momentum = 0.996, *, buffers: Literal["own", "copy", "ema"] = "own"
    ) -> None:
        super().__init__()
        if not callable(momentum) and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], or a schedule of the step; got {momentum}.")
        if buffers not in ("own", "copy", "ema"):
            raise ValueError(f"buffers must be 'own', 'copy' or 'ema'; got {buffers!r}.")
        self.momentum = momentum
        self.buffer_mode = buffers
        self.step = 0
        self.encoder = _plain(copy.deepcopy(unwrap(encoder))).requires_grad_(False)
        for parameter in self.encoder.parameters():
            parameter.grad = None
        self.encoder._apply(lambda tensor: tensor.float() if _is_half(tensor) else tensor)
        if buffers == "own":
            self.training = encoder.training  # submodules keep the modes they were copied with
        else:
            self.train()

    @torch.no_grad()
    def forward(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B D"]:
        """Encode one view of each source, without gradient."""
        # A half-precision model brings half-precision views to float32 weights: autocast meets them half way.
        half = _is_half(views)
        with torch.autocast(views.device.type, views.dtype) if half else contextlib.nullcontext():
            return encode_views(self.encoder, views[:, None])[:, 0]

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move one step towards `encoder`, by the momentum of this step: call it after each optimiser step.

        Args:
            encoder: the online encoder, compiled or wrapped in DistributedDataParallel or not.

        Raises:
            ValueError: its parameters or buffers are not those of the copy.
        """
        online = unwrap(encoder)
        momentum = self.momentum(self.step) if callable(self.momentum) else self.momentum
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]; the schedule gave {momentum} at step {self.step}.")
        averaged = _pairs("parameters", self.encoder.parameters(), online.parameters())
        copied: list[tuple[Tensor, Tensor]] = []
        if self.buffer_mode != "own":
            names = [name.rpartition(".")[2] for name, _ in self.encoder.named_buffers()]
            for name, pair in zip(names, _pairs("buffers", self.encoder.buffers(), online.buffers()), strict=True):
                statistic = name in ("running_mean", "running_var")
                (averaged if statistic and self.buffer_mode == "ema" else copied).append(pair)
        if averaged:  # one fused call; a pair of other types cannot be fused before it is cast
            copies = [mine for mine, _ in averaged]
            torch._foreach_lerp_(copies, [theirs.to(mine.dtype) for mine, theirs in averaged], 1 - momentum)
        for mine, theirs in copied:
            mine.copy_(theirs)
        self.step += 1

    def train(self, mode: bool = True) -> EMATarget:
        """Follow the model's mode with `buffers="own"`; stay in eval mode otherwise."""
        return super().train(mode and self.buffer_mode == "own")

    def get_extra_state(self) -> Tensor:
        """The number of updates done, which a resumed schedule goes on from."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Any) -> None:
        """Go on from that number of updates."""
        self.step = int(state)

    def extra_repr(self) -> str:
        """Momentum, buffers and step, for `print`."""
        return f"momentum={self.momentum}, buffers={self.buffer_mode!r}, step={self.step}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMATarget:
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return torch.empty_like(moved, dtype=torch.float32).copy_(tensor) if _is_half(moved) else moved

        return super()._apply(keep_float32, recurse)


class StopGradientTarget(nn.Module):
    """The online encoder itself, without gradient: for training without an EMA.

    It shares the encoder's weights and adds none to the state dict. In training mode the encoder's batch-norm
    statistics move once more per forward, for the predicted view. Give the loss a regulariser, or watch for collapse.

    Args:
        encoder: the online encoder.

    Shapes:
        views (B, …) → (B, D).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Linear(3, 2)
        >>> target = StopGradientTarget(encoder)
        >>> target(torch.randn(5, 3)).requires_grad, list(target.parameters())
        (False, [])
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = (encoder,)  # a tuple hides it from the module tree: its weights belong to the model alone

    @torch.no_grad()
    def forward(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B D"]:
        """Encode one view of each source, without gradient."""
        return encode_views(self._encoder[0], views[:, None])[:, 0]

    def update(self, encoder: nn.Module) -> None:
        """Nothing to average: only remember which encoder is the online one."""
        self._encoder = (encoder,)


def _plain(module: nn.Module) -> nn.Module:
    """The module with every `torch.compile` or DistributedDataParallel wrapper in it taken off."""
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    return unwrap(module)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _pairs(kind: str, mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of the copy beside the encoder's, or an error before anything has moved."""
    copies, online = list(mine), list(theirs)
    if [t.shape for t in copies] != [t.shape for t in online]:
        raise ValueError(
            f"The target follows the encoder it was copied from; the {kind} of the one given differ in number or shape "
            f"({len(copies)} here, {len(online)} there). Build a new EMATarget for a new encoder."
        )
    pairs = list(zip(copies, online, strict=True))
    for t, o in pairs:
        if t.device != o.device:
            raise ValueError(
                f"Target and encoder must lie on one device; got {t.device} and {o.device}. Move the target with .to()."
            )
    return pairs
