"""Batch norm over all ranks, and running statistics that a bad batch does not spoil."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqjepa.distributed import all_reduce, world_size

__all__ = ["RunningStatistics", "SyncBatchNorm", "sync_batch_norm"]

Module = TypeVar("Module", bound=nn.Module)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` on a GPU, and the same over gloo on a CPU, where torch's refuses.

    It is none of torch's class: DistributedDataParallel takes those on GPUs alone. Made by
    [`sync_batch_norm`][seqjepa.training.sync_batch_norm].

    Examples:
        >>> import torch
        >>> norm = sync_batch_norm(torch.nn.BatchNorm1d(4))
        >>> type(norm).__name__, norm(torch.randn(8, 4)).mean(0).abs().max() < 1e-6      # over all ranks' rows
        ('SyncBatchNorm', tensor(True))
    """

    process_group: Any = None
    _check_input_dim: Any = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels: Any = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
        """Normalise by the mean and the variance of all ranks' rows in training mode, else by the running ones."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        if input.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        self._check_input_dim(input)
        axes, shape = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        rows = x.new_tensor([x.numel() / x.shape[1]])
        total, n = all_reduce(torch.cat([x.sum(axes), rows])).tensor_split([x.shape[1]])
        mean = total / n.detach()
        x = x - mean.view(shape)
        variance = all_reduce(x.square().sum(axes)) / n.detach()
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (n / (n - 1).clamp(min=1)).detach())
        y = x * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class SyncBatchNormAct(SyncBatchNorm):
    """The same for timm's `BatchNormAct2d`, which drops and activates after it has normalised."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
        """Normalise, then drop, then activate."""
        y: Tensor = self.act(self.drop(super().forward(input)))
        return y


def sync_batch_norm(model: Module) -> Module:
    """Let every batch norm of a model take its statistics over all ranks, in place; nothing else changes.

    The encoder's, the embedder's, the predictor's and the target's, 1d, 2d and 3d, and timm's `BatchNormAct2d` with its
    activation, which `torch.nn.SyncBatchNorm.convert_sync_batchnorm` drops without a word. Each stays the module it
    was, with its weights, statistics, mode, hooks and names, and becomes a
    [`SyncBatchNorm`][seqjepa.training.SyncBatchNorm]. In eval mode, and in one process, the outputs are what they were.

    Args:
        model: before it is compiled and wrapped in DistributedDataParallel. A second call changes nothing.

    Returns:
        The same model.

    Raises:
        TypeError: a batch norm with a forward pass of its own, which would be lost.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> model = SeqJEPA.from_timm("efficientnet_b0", action_dim=4).eval()
        >>> views, actions = torch.rand(2, 2, 3, 32, 32), torch.randn(2, 1, 4)
        >>> before = model(views, actions).loss
        >>> torch.equal(before, sync_batch_norm(model)(views, actions).loss)
        True
    """
    found: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    plans = [(norm, _synchronised(name, norm)) for name, norm in found]  # all are known before one is changed
    for norm, kind in plans:
        if kind is not type(norm):
            norm.__class__ = kind  # its state is the same: a copy could only lose some of it
    return model


def _synchronised(name: str, norm: nn.Module) -> type[nn.Module]:
    """What a batch norm becomes."""
    if isinstance(norm, SyncBatchNorm):
        return type(norm)
    timm = sys.modules.get("timm.layers.norm_act")  # loaded, where one of its norms is here
    kind = type(norm)
    if timm is not None and kind.forward in (timm.BatchNormAct2d.forward, timm.SyncBatchNormAct.forward):
        return SyncBatchNormAct
    if kind.forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):  # SyncBatchNorm is a _BatchNorm
        return SyncBatchNorm
    raise TypeError(
        f"{name or 'The model'} is a {kind.__name__}, a batch norm with a forward pass of its own, which would be "
        "lost. Synchronise it yourself, or use a norm that does not depend on the batch."
    )


class RunningStatistics:
    """The running statistics of a model's batch norms, to be put back after a batch that was not finite.

    One batch of infinities makes running means NaN for good: training goes on, and evaluation gives NaN. A step that is
    skipped should leave them as they were.

    Args:
        model: with all its batch norms, the target's too.

    Examples:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> statistics = RunningStatistics(norm)
        >>> statistics.keep()                                      # before the forward pass
        >>> loss = norm(torch.full((4, 2), torch.inf)).sum()
        >>> if not loss.isfinite():
        ...     statistics.put_back()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._live: list[Tensor] = []
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them as they are. A few kilobytes are copied where they lie."""
        live = [b for name, b in self._model.named_buffers() if name.rpartition(".")[2] in STATISTICS]
        if [id(b) for b in live] != [id(b) for b in self._live]:  # the first call, or the model has moved
            self._live, self._kept = live, [torch.empty_like(b) for b in live]
        for kind in {b.dtype for b in live}:
            torch._foreach_copy_(self._of(kind, self._kept), self._of(kind, live))

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them what they were at the last `keep`."""
        for kind in {b.dtype for b in self._live}:
            torch._foreach_copy_(self._of(kind, self._live), self._of(kind, self._kept))

    @staticmethod
    def _of(kind: torch.dtype, tensors: list[Tensor]) -> list[Tensor]:
        return [t for t in tensors if t.dtype == kind]
