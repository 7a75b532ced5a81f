"""A linear probe that learns beside a training run and leaves the run as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from seqjepa._checks import check_axes
from seqjepa._modes import autocast

__all__ = ["OnlineProbe"]

LARGEST = 1e15  # squares of larger numbers overflow float32 when they are summed


class OnlineProbe:
    """A linear classifier of the features of a run in progress: what its representation knows by now.

    It sees the features detached, has weights and an optimiser (AdamW) of its own, and draws no random numbers: the
    run is the same bit by bit with it and without. Features are standardised by a batch norm without affine parameters.
    Each batch is first classified, then learnt from, so `accuracy` is on rows the probe has not fitted; from the second
    epoch on it has fitted the same sources before. For a figure to report, use
    [`linear_probe`][seqjepa.evaluation.linear_probe] on held-out rows: the representation moves while this probe
    learns, so it lags behind.

    Rows that hold NaN, infinity or a number beyond 10¹⁵ (half precision overflowed, say, and the run skips the step)
    are not learnt from, and count in no accuracy; the others of their batch are and do.

    Args:
        dim: D, width of the features.
        num_classes: C; labels are 0 … C−1.
        lr: learning rate.
        weight_decay: of AdamW.
        memory: of the running accuracy, in [0, 1): the weight of the past at each batch.
        device: where the features lie.

    Shapes:
        features (N, D), labels (N,) integers.

    Raises:
        ValueError: sizes below 1, a memory outside [0, 1), features or labels that do not fit.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8))
        >>> model = SeqJEPA.from_encoder(encoder, action_dim=2, view_shape=(3, 4, 4), heads=2)
        >>> probe = OnlineProbe(model.aggregator.dim, num_classes=2)
        >>> handle = probe.attach(model, features=lambda out: out.state, labels=lambda: labels)
        >>> for step in range(3):                                              # the loop as it was
        ...     views, actions = torch.rand(8, 3, 3, 4, 4), torch.randn(8, 2, 2)
        ...     labels = torch.arange(8) % 2
        ...     model(views, actions).loss.backward()
        >>> probe.step, 0 <= probe.accuracy <= 1
        (3, True)
        >>> handle.remove()
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        memory: float = 0.98,
        device: torch.device | str = "cpu",
    ) -> None:
        if dim < 1 or num_classes < 2:
            raise ValueError(
                f"A probe needs features and two classes at least; got dim={dim}, num_classes={num_classes}."
            )
        if not 0 <= memory < 1:
            raise ValueError(f"memory is the weight of the past at each batch, in [0, 1); got {memory}.")
        full: Any = {"device": device, "dtype": torch.float32}
        linear = nn.utils.skip_init(nn.Linear, dim, num_classes, **full)  # a drawn weight would move the run
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.zero_()
        self.network = nn.Sequential(nn.BatchNorm1d(dim, affine=False, **full), linear)
        self.optimizer = torch.optim.AdamW(linear.parameters(), lr=lr, weight_decay=weight_decay)
        self.dim, self.num_classes, self.memory = dim, num_classes, memory
        self.step = 0
        self._hits, self._batches = torch.zeros(2, **full).unbind()  # both fade: their ratio is the accuracy

    def __repr__(self) -> str:
        """Sizes and steps; nothing that waits for the device."""
        return f"OnlineProbe(dim={self.dim}, num_classes={self.num_classes}, step={self.step})"

    @property
    def accuracy(self) -> float:
        """Running accuracy over the last batches, in [0, 1]; nan before the first. Reading it waits for the device."""
        return (self._hits / self._batches).item()

    def update(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        """Classify the batch, then learn from it. Never waits for the device.

        Args:
            features: (N, D), of any floating type, N ≥ 2; detached here.
            labels: (N,) integers 0 … C−1.

        Returns:
            () accuracy of this batch, before learning from it; nan if none of its rows is finite.
        """
        x, y = self._check(features, labels)
        if len(x) < 2:
            raise ValueError("The probe standardises by the batch, and needs two rows at least; got 1.")
        with torch.inference_mode(False), torch.enable_grad(), autocast(x.device, enabled=False):
            x, usable = self._usable(x.clone() if x.is_inference() else x)
            count = usable.sum()
            logits = self.network.train()(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            loss = torch.where(usable, losses, 0).sum() / count.clamp(min=1)
            gradients = torch.autograd.grad(loss, list(self.network.parameters()))
            for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            accuracy = ((logits.detach().argmax(1) == y) & usable).float().sum() / count
            some = count > 0
            self._hits = self.memory * self._hits + torch.where(some, accuracy, 0)
            self._batches = self.memory * self._batches + some
        self.step += 1
        return accuracy

    def _usable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows, and which are finite; in the place of the others stands the mean of those, or of the past."""
        norm: Any = self.network[0]
        usable = (x.abs() < LARGEST).all(dim=1)  # False of NaN
        kept = torch.where(usable[:, None], x, 0)
        mean = torch.where(usable.any(), kept.sum(0) / usable.sum().clamp(min=1), norm.running_mean)
        return torch.where(usable[:, None], x, mean), usable

    @torch.no_grad()
    def score(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        """Accuracy on held-out rows that are finite, by the running statistics; nan if none is. Changes nothing."""
        x, y = self._check(features, labels)
        with autocast(x.device, enabled=False):
            x, usable = self._usable(x)
            return ((self.network.eval()(x).argmax(1) == y) & usable).float().sum() / usable.sum()

    def attach(
        self, module: nn.Module, *, features: Callable[[Any], Tensor], labels: Callable[[], Tensor]
    ) -> RemovableHandle:
        """Learn at each forward pass of a module in training mode; passes in eval mode do not count.

        Args:
            module: the model, or any part of it.
            features: the module's output → (N, D), such as `lambda out: out.state`, or `lambda out: out.z[:, 0]`.
            labels: () → (N,), called after each pass, such as `lambda: batch.labels`, where `batch` is the loop's own
                variable.

        Returns:
            The hook; `.remove()` detaches the probe.
        """

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training:
                self.update(features(output), labels())

        return module.register_forward_hook(torch.compiler.disable(hook))

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser and running accuracy, for a checkpoint."""
        return {
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "running": self._hits.clone(), "weight": self._batches.clone(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self._hits, self._batches = (
            torch.as_tensor(state[key], dtype=torch.float32, device=self._hits.device) for key in ("running", "weight")
        )

    def _check(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes and types; values are not read."""
        check_axes("features", features, "N D")
        if features.shape[1] != self.dim or labels.shape != features.shape[:1]:
            raise ValueError(
                f"The probe takes features (N, {self.dim}) and labels (N); got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise TypeError(f"labels must be integers; got {labels.dtype}. Convert with labels.long().")
        if features.device != self._hits.device:
            raise ValueError(
                f"The probe lies on {self._hits.device}; got features on {features.device}. Build it with "
                f"device={str(features.device)!r}."
            )
        return features.detach().float(), labels.to(features.device).long()
