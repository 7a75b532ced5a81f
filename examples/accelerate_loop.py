"""Train seq-JEPA with Hugging Face Accelerate: one process or many, accumulation, mixed precision, saved and resumed.

    python examples/accelerate_loop.py --steps 200
    accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py --steps 200 --accumulate 2
    python examples/accelerate_loop.py --steps 400 --run runs/accelerate --resume

The data are scikit-learn's digits, turned and shifted. Needs `pip install 'seqjepa[examples]' accelerate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from small import small_model
from sources import digits

from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.training import seed_step, weight_groups


class Progress(dict[str, int]):
    """Optimiser steps done, for a checkpoint."""

    state_dict = dict.copy
    load_state_dict = dict.update


def train(
    accelerator: Accelerator,
    model: Any,
    loader: ViewLoader,
    *,
    steps: int,
    rate: Callable[[int], float],
    seed: int = 0,
    run: Path | None = None,
    resume: bool = False,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Any:
    """The loop; the model as it is without Accelerate."""
    optimizer = torch.optim.AdamW(weight_groups(model, 1e-3), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    forward, optimizer = accelerator.prepare(model, optimizer)  # the scheduler stays outside: see the guide
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    progress = Progress(step=0)
    accelerator.register_for_checkpointing(scheduler, loader, progress)
    if resume and run is not None:
        accelerator.load_state(str(run))
    batches, total, fresh = iter(loader), 0.0, True
    while progress["step"] < steps:
        if fresh:  # once for all batches of a step
            seed_step(seed, progress["step"])
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        with accelerator.accumulate(forward):
            loss = forward(batch.views, batch.actions).loss
            accelerator.backward(loss)  # divided by the batches that are accumulated
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item() / accelerator.gradient_accumulation_steps
        fresh = accelerator.sync_gradients
        if fresh:
            if not accelerator.optimizer_step_was_skipped:  # float16 that overflowed
                scheduler.step()
                model.update_target()
            progress["step"] += 1
            report(progress["step"], total)
            total = 0.0
    if run is not None:
        accelerator.save_state(str(run))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of the whole run [200]")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process [64]")
    parser.add_argument("--accumulate", type=int, default=1, help="batches to an optimiser step [1]")
    parser.add_argument("--precision", default="no", choices=["no", "fp16", "bf16"], help="[no]")
    parser.add_argument("--run", type=Path, help="folder for the state")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --run")
    arguments = parser.parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.accumulate, mixed_precision=arguments.precision
    )  # before the loader, which asks for its rank
    torch.manual_seed(0)
    model = small_model(32, 3, arguments.steps).to(accelerator.device)
    views = RotatedViews(num_views=4, degrees=45, shift=0.1, size=32, border="zero")
    loader = ViewLoader(digits(32), views, batch_size=arguments.batch_size, device=accelerator.device)
    warmup = min(200, arguments.steps // 2)

    def report(step: int, loss: float) -> None:
        if step % 20 == 0:
            accelerator.print(f"step {step}: loss {loss:.3f}")

    train(
        accelerator, model, loader, steps=arguments.steps, report=report, run=arguments.run, resume=arguments.resume,
        rate=WarmupCosineSchedule(2e-5, 2e-3, 2e-5, warmup, arguments.steps),
    )  # fmt: skip
    accelerator.end_training()


if __name__ == "__main__":
    main()
