"""The paper's settings, by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from seqjepa.functional import CosineSchedule, WarmupCosineSchedule
from seqjepa.model import SeqJEPA

__all__ = ["PRESETS", "Preset", "get_preset"]


@dataclass(frozen=True)
class Preset:
    """One of the paper's training settings: what to build, and how it was trained.

    Every preset has the paper's parts: a ResNet-18, a linear action embedder of width 128 with batch norm, three
    post-norm layers of four heads, a predictor of hidden width 1024, an EMA target from 0.996 to 1 on a cosine over
    the run, AdamW, batch 512, a linear warm-up of 20 epochs from 1e-5 to 4e-4 and a cosine decay.

    Attributes:
        action: what an action is, in words.
        action_dim: A.
        observed_views: T in training, the paper's M.
        image_size: side of a view in pixels.
        cifar_stem: whether the ResNet has the stem for 32-px views.
        epochs: length of the run.
        batch_size: sources a step.
        learning_rate: at the end of the warm-up.
        warmup_learning_rate: at the start of the warm-up, and at the end of the run.
        warmup_epochs: length of the warm-up.
        weight_decay: of every parameter.
        momentum: of the target at the start; it ends at 1.

    Examples:
        >>> preset = get_preset("3diebench-rotation")
        >>> model = preset.model(steps_per_epoch=90)
        >>> optimizer = preset.optimizer(model)
        >>> scheduler = preset.scheduler(optimizer, steps_per_epoch=90)   # scheduler.step() after every optimiser step
        >>> model.target.momentum(0), scheduler.get_last_lr()
        (0.996, [1e-05])
    """

    action: str
    action_dim: int
    observed_views: int
    image_size: int
    cifar_stem: bool
    epochs: int
    batch_size: int = 512
    learning_rate: float = 4e-4
    warmup_learning_rate: float = 1e-5
    warmup_epochs: int = 20
    weight_decay: float = 1e-3
    momentum: float = 0.996

    def model(self, steps_per_epoch: int, *, embedder: nn.Module | None = None) -> SeqJEPA:
        """Build the model.

        Args:
            steps_per_epoch: optimiser steps an epoch: sources divided by `batch_size`. The target's momentum reaches 1
                after `epochs · steps_per_epoch` updates.
            embedder: instead of the paper's, such as `NoActions()` for its ablation.

        Returns:
            The model, in training mode, freshly initialised.
        """
        return SeqJEPA.from_timm(
            "resnet18",
            action_dim=self.action_dim,
            img_size=self.image_size,
            cifar_stem=self.cifar_stem,
            embedder=embedder,
            momentum=CosineSchedule(self.momentum, 1.0, self.epochs * steps_per_epoch),
        )

    def optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW over every parameter that learns, with the paper's rate and weight decay."""
        learning = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=self.learning_rate, weight_decay=self.weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning rate's warm-up and decay, to be stepped after every optimiser step.

        Args:
            optimizer: from [`optimizer`][seqjepa.presets.Preset.optimizer].
            steps_per_epoch: as for [`model`][seqjepa.presets.Preset.model].
        """
        rate = WarmupCosineSchedule(
            self.warmup_learning_rate / self.learning_rate,
            1.0,
            self.warmup_learning_rate / self.learning_rate,
            self.warmup_epochs * steps_per_epoch,
            self.epochs * steps_per_epoch,
        )
        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


PRESETS: dict[str, Preset] = {
    "3diebench-rotation": Preset("relative rotation, a quaternion x y z w", 4, 3, 128, False, epochs=1000),
    "3diebench-rotation-colour": Preset(
        "relative rotation, a quaternion x y z w; differences of floor hue and light hue", 6, 4, 128, False, epochs=1000
    ),
    "augmentations-32": Preset(
        "differences of crop (i, j, h, w), jitter (brightness, contrast, saturation, hue) and blur σ",
        9, 3, 32, True, epochs=2000,
    ),
    "augmentations-64": Preset(
        "differences of crop (i, j, h, w), jitter (brightness, contrast, saturation, hue) and blur σ",
        9, 3, 64, False, epochs=2000,
    ),
    "saccades-32": Preset("difference of fixation positions over the image size", 2, 4, 32, True, epochs=2000),
}  # fmt: skip


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Args:
        name: a key of `PRESETS`.

    Raises:
        ValueError: there is no such preset; the names are listed.

    Examples:
        >>> get_preset("saccades-32").observed_views
        4
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}. The presets are: {', '.join(PRESETS)}.")
    return PRESETS[name]
