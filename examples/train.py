"""Train seq-JEPA on any data, with any encoder, on a CPU, a GPU or many: the whole loop, to be read and copied.

    python examples/train.py --data objects --size 32 --steps 2000 --run runs/a
    python examples/train.py --config runs/a/config.json --resume auto          # go on, also after a crash
    python examples/train.py --data my/photographs --sampler saccades --size 64 --encoder vit_tiny_patch16_224
    torchrun --nproc-per-node 8 -- examples/train.py --data imagenet --root data --encoder resnet18 --run runs/b

The run's folder holds config.json, metrics.jsonl, TensorBoard's events (where it is installed), checkpoints/, and at
the end model/, for SeqJEPA.from_pretrained. Ctrl-C and SIGTERM save first. Needs `pip install 'seqjepa[examples]'`.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import running
import torch
import torch.distributed as dist
from command_line import parse, setting
from small import small_convnet
from sources import Source, open_source
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from seqjepa import ActionEmbedder, CosineSchedule, NoActions, SeqJEPA
from seqjepa.distributed import all_reduce, rank, world_size
from seqjepa.encoders import timm_encoder
from seqjepa.evaluation import Monitor, OnlineProbe
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.training import Checkpoints, RunningStatistics, seed_step, sync_batch_norm, weight_groups


@dataclass(frozen=True)
class Settings:
    data: str = setting("objects", "objects, digits, stl10, cifar100, … or a folder of images", fixed=True)
    root: str = setting("data", "folder of a dataset that is on disk", fixed=True)
    sampler: Literal["rotated", "augmented", "saccades"] = setting("rotated", "what makes views of images", fixed=True)
    size: int = setting(32, "side of a view in pixels", least=8, fixed=True)
    observed: int = setting(3, "views read before the next is predicted", least=1, fixed=True)
    objects: int = setting(1000, "objects to render", least=1, fixed=True)
    pool: int = setting(8, "views to render of each object", least=2, fixed=True)
    workers: int = setting(0, "processes of each rank that load", least=0)
    encoder: str = setting("small", "small, or any timm name", fixed=True)
    actions: bool = setting(True, "condition on the actions", fixed=True)
    batch_size: int = setting(64, "sources in a batch, on each rank", least=2, fixed=True)
    accumulate: int = setting(1, "batches to an optimiser step", least=1)
    steps: int = setting(2000, "optimiser steps of the whole run", least=1)
    rate: float = setting(2e-3, "learning rate after the warm-up", least=0)
    warmup: int = setting(200, "steps of warm-up; half of the run at most", least=0)
    weight_decay: float = setting(0.1, "of matrices and kernels", least=0)
    momentum: float = setting(0.98, "of the target, at the start; it ends at 1", least=0)
    clip: float = setting(1.0, "most length of a gradient; 0 leaves it as it is", least=0)
    nonfinite: Literal["skip", "stop"] = setting(
        "skip", "at a loss or gradient that is not finite: the step or the run"
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "of autocast; auto is bfloat16 on a GPU")
    channels_last: bool = setting(True, "memory format of convolutions")
    compile: bool = setting(False, "compile the model")
    device: str = setting("auto", "auto is this rank's GPU, or the CPU")
    seed: int = setting(0, "of weights, data and dropout", least=0, most=2**63 - 1, fixed=True)
    run: str = setting("runs/train", "folder of the run")
    resume: Literal["never", "auto", "always"] = setting(
        "never", "go on with the run in the folder; auto: if there is one", nargs="?", const="always"
    )
    checkpoint_every: int = setting(500, "steps", least=1)
    keep: int = setting(2, "how many checkpoints", least=1)
    log_every: int = setting(20, "steps", least=1)
    monitor_every: int = setting(100, "steps", least=1)
    profile: bool = setting(False, "trace steps 4 to 7 into the run's folder")


def build(settings: Settings, source: Source) -> SeqJEPA:
    channels, side, small = source.view_shape[0], source.view_shape[-1], settings.encoder == "small"
    if small:
        encoder = small_convnet(side, channels)
    else:
        stem = side <= 32 and settings.encoder.startswith("resnet")
        encoder = timm_encoder(settings.encoder, cifar_stem=stem, img_size=side, in_chans=channels)
    return SeqJEPA.from_encoder(
        encoder,
        action_dim=source.action_dim,
        view_shape=source.view_shape,
        embedder=ActionEmbedder(source.action_dim, 32 if small else 128) if settings.actions else NoActions(),
        momentum=CosineSchedule(settings.momentum, 1.0, settings.steps),
    )


def train(settings: Settings, device: torch.device) -> int:
    folder, ranks = Path(settings.run), world_size()
    with running.clear_errors():
        source = open_source(settings, device)
        torch.manual_seed(settings.seed)
        model = build(settings, source).to(device)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if ranks > 1:
            sync_batch_norm(model)
        optimizer = torch.optim.AdamW(weight_groups(model, settings.weight_decay), lr=1.0)  # the schedule sets the rate
        low, warmup = settings.rate / 100, min(settings.warmup, settings.steps // 2)
        rate = WarmupCosineSchedule(low, settings.rate, low, warmup, settings.steps)
        statistics, tally = RunningStatistics(model), running.Tally(skipped=0)
        monitor = Monitor(settings.monitor_every, over_ranks=True)
        width, classes = model.aggregator.dim, source.num_classes
        probe = None if classes is None else OnlineProbe(width, classes, device=device)
        run = Checkpoints(
            folder, keep=settings.keep, model=model, optimizer=optimizer, loader=source.loader, monitor=monitor,
            probe=probe, tally=tally,
        )  # fmt: skip
        step = run.restore()
        if step > settings.steps:
            raise ValueError(f"{folder} has come to step {step}, and --steps {settings.steps} is below")
    if rank() == 0:
        running.write_settings(settings)
    if settings.compile:
        model.compile()
    devices = [device] if device.type == "cuda" else None
    forward: Any = DistributedDataParallel(model, device_ids=devices) if ranks > 1 else model
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    journal, stop, stopping = running.Journal(folder, step, settings.steps, writes=rank() == 0), running.Stop(), False
    model.train()
    batches, since, seen = running.passes(source.loader), time.perf_counter(), 0
    with running.profiler(folder if settings.profile else None) as profiler:
        while step < settings.steps and not stopping:
            seed_step(settings.seed, step)
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            statistics.keep()
            total = torch.zeros((), device=device)
            for micro in range(settings.accumulate):
                batch = next(batches)
                waits = ranks > 1 and micro < settings.accumulate - 1  # gradients are averaged after the last batch
                with forward.no_sync() if waits else nullcontext():
                    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                        out = forward(batch.views, batch.actions)
                    (out.loss / settings.accumulate).backward()
                total += out.loss.detach() / settings.accumulate
                seen += ranks * batch.views.shape[:2].numel()
            length = nn.utils.clip_grad_norm_(weights, settings.clip or math.inf)
            # One sum over ranks, read once: what hangs on it is decided alike on all of them.
            shared = all_reduce(torch.stack([total, length, total.new_tensor(float(stop.signal))])) / ranks
            loss, gradient, stopping = shared.tolist()
            values: dict[str, Any] = {}
            if math.isfinite(loss) and math.isfinite(gradient):
                optimizer.step()
                model.update_target()
                if probe is not None and batch.labels is not None:
                    probe.update(out.state, batch.labels)
                values["monitor"] = monitor(
                    z=out.z, state=out.state, prediction=out.prediction, target=out.target, encoder=model.encoder,
                    target_encoder=model.target,
                )  # fmt: skip
            elif settings.nonfinite == "stop":
                sys.exit(running.not_finite(loss, gradient, step, settings.seed, run.latest))
            else:
                statistics.put_back()
                tally["skipped"] += 1
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % settings.log_every == 0 or step == settings.steps or values.get("monitor"):
                now = time.perf_counter()
                values |= {"loss": loss, "rate": rate(step - 1), "momentum": model.target.momentum(model.target.step)}
                values |= {"gradient": gradient, "views_per_second": seen / (now - since), "skipped": tally["skipped"]}
                values["probe"] = None if probe is None else probe.accuracy
                journal.log(step, values)
                since, seen = now, 0
            if step % settings.checkpoint_every == 0 or step == settings.steps or stopping:
                run.save(step)
            journal.bar.update()
            profiler.step()
    journal.bar.close()
    if rank() == 0 and step < settings.steps:
        print(f"Stopped at step {step}. To go on:\n    {running.command_that_goes_on(settings, sys.argv[0], ranks)}")
    elif rank() == 0:
        model.save_pretrained(folder / "model")
        print(f"{step} steps are done; the model is in {folder / 'model'}")
    return 0 if step == settings.steps else 128 + (stop.signal or signal.SIGTERM)


def main() -> None:
    settings = parse(Settings, __doc__)
    device = running.start_processes(settings.device)
    if settings.precision == "auto":
        settings = replace(settings, precision="bfloat16" if device.type == "cuda" else "float32")
    running.check_folder(settings)
    status = train(settings, device)
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(status)


if __name__ == "__main__":
    main()
