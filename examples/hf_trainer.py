"""Train seq-JEPA with `transformers.Trainer`: its arguments, logging and checkpoints, our batches and target.

    python examples/hf_trainer.py --max_steps 200
    python examples/hf_trainer.py --max_steps 400 --gradient_accumulation_steps 2 --output_dir runs/trainer --resume

Every argument of `TrainingArguments` is one of the command line. The data are scikit-learn's digits, turned and
shifted. Needs `pip install 'seqjepa[examples]' transformers accelerate`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from small import small_model
from sources import digits
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.training import seed_step, weight_groups


class Batches:
    """A ViewLoader as Trainer wants it: dictionaries of forward's arguments; after a resume the rest of an epoch."""

    def __init__(self, loader: ViewLoader, trainer: Trainer) -> None:
        self.loader, self.trainer = loader, trainer
        self.accumulate = trainer.args.gradient_accumulation_steps
        if len(loader) % self.accumulate:
            raise ValueError(
                f"An epoch holds whole optimiser steps; got {len(loader)} batches and {self.accumulate} to accumulate. "
                "Choose a batch size that fits."
            )

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        done = self.trainer.state.global_step * self.accumulate - epoch * len(self.loader)
        place = {"epoch": epoch, "batch": max(done, 0), "next_epoch": epoch + 1}
        self.loader.load_state_dict(self.loader.state_dict() | place)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for views, actions, *_ in self.loader:
            yield {"views": views, "actions": actions}


class SeedSteps(TrainerCallback):
    """What a step draws depends on the seed, the step and the rank."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seed_step(args.seed, state.global_step)


class SeqJEPATrainer(Trainer):
    """Trainer with a ViewLoader, and a target that moves after the optimiser's own step."""

    def __init__(self, model: Any, args: TrainingArguments, loader: ViewLoader, optimizers: Any) -> None:
        args.ignore_data_skip = True  # the loader finds its place by itself; Trainer would load all batches again
        super().__init__(model, args, optimizers=optimizers, callbacks=[SeedSteps()])
        self.loader = loader
        optimizers[0].register_step_post_hook(lambda *_: model.update_target())

    def get_train_dataloader(self) -> Any:
        return Batches(self.loader, self)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: value.contiguous() for name, value in state.items()})  # channels-last is not


def optimizers_of(model: Any, rate: Any) -> Any:
    optimizer = torch.optim.AdamW(weight_groups(model, 1e-3), lr=1.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def main() -> None:
    resume = "--resume" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--resume"]
    defaults = ["--output_dir", "runs/trainer", "--max_steps", "200", "--per_device_train_batch_size", "64"]
    defaults += ["--logging_steps", "20", "--report_to", "none"]
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(args=[*defaults, *words])
    torch.manual_seed(args.seed)
    model = small_model(32, 3, args.max_steps)
    views = RotatedViews(num_views=4, degrees=45, shift=0.1, size=32, border="zero")
    loader = ViewLoader(digits(32), views, batch_size=args.per_device_train_batch_size, device=args.device)
    rate = WarmupCosineSchedule(2e-5, 2e-3, 2e-5, min(200, args.max_steps // 2), args.max_steps)
    model.to(args.device)
    trainer = SeqJEPATrainer(model, args, loader, optimizers_of(model, rate))
    trainer.train(resume_from_checkpoint=resume)
    model.save_pretrained(f"{args.output_dir}/model")


if __name__ == "__main__":
    main()
