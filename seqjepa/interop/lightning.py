"""A model as a LightningModule: the recipe's step, with a target that moves once an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from seqjepa.data import ViewLoader
from seqjepa.functional import CosineSchedule
from seqjepa.target import EMATarget
from seqjepa.training import seed_step, weight_groups
from seqjepa.types import SeqJEPAOutput, map_tensors

try:
    from lightning.pytorch import LightningModule
except ImportError as error:
    raise ImportError(
        "seqjepa.interop.lightning needs Lightning, which could not be imported "
        f"({error}). Install it: pip install 'seqjepa[lightning]'"
    ) from error

__all__ = ["SeqJEPAModule"]


def _adamw(groups: list[dict[str, Any]]) -> Optimizer:
    return torch.optim.AdamW(groups, lr=1.0)


class SeqJEPAModule(LightningModule):
    """Train a model with `lightning.Trainer`, loss by loss as the plain loop does.

    The target moves right after the optimiser's own step: once for several accumulated batches, not at all where a
    gradient scaler skips the step, and under manual optimisation too. Of several optimisers, the one that holds weights
    of the encoder moves it. Each optimiser step begins with [`seed_step`][seqjepa.training.seed_step], and a
    [`ViewLoader`][seqjepa.data.ViewLoader] is set to the Trainer's epoch, so that a run that is resumed, in the middle
    of an epoch or between two, goes on as if it had not stopped.

    Logs `loss`, its terms, `rate` and `momentum` (those of the coming step) at each step, and `val_loss` over
    validation batches. Callbacks find what the model returned, detached, in `outputs["out"]`: for a
    [`Monitor`][seqjepa.evaluation.Monitor] or an [`OnlineProbe`][seqjepa.evaluation.OnlineProbe]. Everything can be
    overridden: `forward` for batches of another form, `configure_optimizers` for anything that Lightning takes there.

    Args:
        model: called as `model(views, actions)`, with `.loss`, `.terms` and `.z` in what it returns, and
            `update_target()`; such as [`SeqJEPA`][seqjepa.SeqJEPA] or one of `seqjepa.baselines`. It is `module.model`:
            save a SeqJEPA by `module.model.save_pretrained`.
        rate: learning rate, or a schedule of the optimiser step, such as
            [`WarmupCosineSchedule`][seqjepa.functional.WarmupCosineSchedule].
        weight_decay: of matrices and kernels; the rest doesn't decay, by
            [`weight_groups`][seqjepa.training.weight_groups].
        seed: of dropout, by step and rank; None leaves the generators alone.
        optimizer: from these groups to an optimiser with `lr=1.0`, which the rate is a factor of; AdamW by default.

    Source:
        Lightning calls `on_train_batch_end` for each batch, and `optimizer_step` for each step of automatic
        optimisation, skipped or not; so this hangs on `torch.optim.Optimizer.register_step_post_hook`.

    Examples:
        >>> import torch, lightning
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8))
        >>> model = SeqJEPA.from_encoder(encoder, action_dim=2, view_shape=(3, 4, 4), heads=2)
        >>> sources = [ViewSequence(torch.rand(3, 3, 4, 4), torch.randn(2, 2)) for _ in range(32)]
        >>> loader = torch.utils.data.DataLoader(sources, batch_size=8)
        >>> trainer = lightning.Trainer(
        ...     max_epochs=1, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(SeqJEPAModule(model, rate=1e-3), loader)
        >>> trainer.global_step, model.target.step
        (2, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rate: float | Callable[[int], float],
        weight_decay: float = 1e-3,
        seed: int | None = 0,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] = _adamw,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.rate = rate
        self.weight_decay = weight_decay
        self.seed = seed
        self.optimizer = optimizer
        self._follower: RemovableHandle | None = None
        self._seeded = -1

    def forward(self, batch: Any) -> SeqJEPAOutput:
        """The model's output of a batch: a ViewSequence, or a tuple that begins with views and actions."""
        views, actions, *_ = batch
        output: SeqJEPAOutput = self.model(views, actions)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The loss and, as `out`, all that the model returned."""
        out = self(batch)
        self.log("loss", out.loss, prog_bar=True)
        self.log_dict(out.terms)
        self.log("rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        momentum = _momentum(self.model)
        if momentum is not None:
            self.log("momentum", momentum)
        return {"loss": out.loss, "out": map_tensors(Tensor.detach, out)}

    def validation_step(self, batch: Any, batch_idx: int) -> SeqJEPAOutput:
        """Log the mean loss of the validation data, over all processes."""
        out = self(batch)
        self.log("val_loss", out.loss, prog_bar=True, sync_dist=True, batch_size=len(out.z))
        return out

    def configure_optimizers(self) -> Any:
        """The optimiser, and its rate by optimiser step."""
        optimizer = self.optimizer(weight_groups(self.model, self.weight_decay))
        rate = self.rate
        scheduler = LambdaLR(optimizer, rate if callable(rate) else lambda step: rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let the target follow the optimiser."""
        if self._follower is not None:
            self._follower.remove()  # of a fit that an exception ended
        leader = _leader(self.trainer.optimizers, getattr(self.model, "encoder", None))
        self._follower = leader.register_step_post_hook(self._follow)
        self._seeded = -1

    def on_train_end(self) -> None:
        """Leave the optimiser as it was."""
        if self._follower is not None:
            self._follower.remove()
            self._follower = None

    def on_train_epoch_start(self) -> None:
        """Set the loaders to this epoch: at the end of one, Lightning restores them with max_steps only."""
        for loader in tree_leaves(self.trainer.train_dataloader):
            if isinstance(loader, ViewLoader):
                loader.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the step draws, once for all batches that are accumulated in it."""
        if self.seed is not None and self.global_step != self._seeded:
            seed_step(self.seed, self.global_step)
            self._seeded = self.global_step

    def _follow(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A fused optimiser is stepped by the scaler also where gradients overflowed, and looks at this by itself.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not overflow:
            self.model.update_target()


def _leader(optimizers: Sequence[Optimizer], encoder: Any) -> Optimizer:
    """The optimiser whose steps the target follows."""
    weights = set() if encoder is None else {id(p) for p in encoder.parameters()}
    for optimizer in optimizers:
        if any(id(p) in weights for group in optimizer.param_groups for p in group["params"]):
            return optimizer
    return optimizers[0]  # a frozen encoder


def _momentum(model: Any) -> float | Tensor | None:
    """That of the next update, which a GPU is not waited for with our schedules; None without an EMA."""
    target = getattr(model, "target", None)
    if not isinstance(target, EMATarget):
        return None
    if not callable(target.momentum):
        return target.momentum
    if isinstance(target.momentum, CosineSchedule):
        return target.momentum(target.get_extra_state())
    return target.momentum(target.step)
