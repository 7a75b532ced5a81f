"""What a training step of SeqJEPA, or of a baseline, costs beyond its encoder.

The time of one step (encode B·T views, embed, aggregate, predict, target, loss, backward, AdamW, EMA) over the time of
the encoder alone doing the same passes (forward and backward on B·T views, forward without gradient on B, AdamW on its
weights), taken in turns in one process so that both see the same machine. Then each part by itself.

    python benchmarks/step.py                    # ResNet-18 at 32, 64 and 128 px
    python benchmarks/step.py --batch 256        # more sources a step
    python benchmarks/step.py --method SimCLR --sides 64 --batch 128    # a baseline's step over its own passes

A method of pairs is given two views of a source, VICRegTraj three, ConvIJEPA and SeqJEPA `--observed` and one more.
On a CPU, page faults cloud the ratio unless the allocator keeps its memory: docs/speed.md says how to tell it.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from seqjepa import SeqJEPA, baselines
from seqjepa.encoders import timm_encoder
from seqjepa.functional import cosine_distance
from seqjepa.groups import Translation

AVERAGED = (baselines.BYOL, baselines.ConditionalBYOL, baselines.ConvIJEPA)
METHODS = [name for name in baselines.__all__ if hasattr(getattr(baselines, name), "from_encoder")]


def seconds(work: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """The time of one call, the device's queue included."""
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_step(
    encoder: nn.Module,
    frozen: nn.Module,
    seen: torch.Tensor,
    last: torch.Tensor,
    goal: torch.Tensor,
    autocast: torch.autocast,
) -> Callable[[], None]:
    """What the encoders alone cost: some views with gradient, others (or none) without, and an update."""
    optimizer = adamw(list(encoder.parameters()))

    def step() -> None:
        with autocast:
            if len(last):
                with torch.no_grad():
                    frozen(last)
            loss = cosine_distance(encoder(seen), goal).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def interleaved(
    works: dict[str, Callable[[], None]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times of each piece of work, in turns, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 2):
        for name, work in works.items():
            times[name].append(seconds(work, device, clock))
    return {name: values[2:] for name, values in times.items()}


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-3, fused=True)


def pieces(side: int, batch: int, observed: int, device: torch.device, bf16: bool) -> dict[str, Callable[[], None]]:
    """The step, the encoder alone, and each part of the rest alone, on inputs of its own."""
    torch.manual_seed(0)
    model = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=side <= 32).to(device)
    encoder, frozen = copy.deepcopy(model.encoder), copy.deepcopy(model.target.encoder)
    views = torch.rand(batch, observed + 1, 3, side, side, device=device)
    actions = torch.randn(batch, observed, 4, device=device)
    goal = torch.randn(batch * observed, 512, device=device)
    seen, last = views[:, :-1].flatten(0, 1).contiguous(), views[:, -1].contiguous()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    optimizer = adamw([p for p in model.parameters() if p.requires_grad])

    def step() -> None:
        with autocast:
            loss = model(views, actions).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target()

    encoder_alone = bare_step(encoder, frozen, seen, last, goal, autocast)
    parts = copy.deepcopy(model)
    z = torch.randn(batch, observed, 512, device=device, requires_grad=True)
    e = torch.randn(batch, observed, 128, device=device)
    state = torch.randn(batch, 640, device=device, requires_grad=True)
    target = torch.randn(batch, 512, device=device)
    shapes = [p.shape for name, p in parts.named_parameters() if p.requires_grad and not name.startswith("encoder.")]
    rest = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for parameter in rest:
        parameter.grad = torch.randn_like(parameter)
    rest_optimizer = adamw(rest)

    def embed() -> None:
        with autocast:
            value = parts.embed(actions).square().mean()
        value.backward()
        parts.zero_grad()

    def aggregate() -> None:
        with autocast:
            value = parts.aggregate(z, e[:, :-1]).square().mean()
        value.backward()
        parts.zero_grad()

    def predict() -> None:
        with autocast:
            value = parts.loss(parts.predict(state, e[:, -1]), target).loss
        value.backward()
        parts.zero_grad()

    def optimize_rest() -> None:
        rest_optimizer.step()

    return {
        "step": step,
        "encoder alone": encoder_alone,
        "embedder": embed,
        "aggregator": aggregate,
        "predictor and loss": predict,
        "AdamW on the rest": optimize_rest,
        "EMA update": parts.update_target,
    }


class Held(nn.Module):
    """Stands in for an encoder: its outputs are there already, and want a gradient."""

    def __init__(self, z: torch.Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.z[: len(views)]


def baseline_pieces(
    name: str, side: int, batch: int, observed: int, device: torch.device, bf16: bool
) -> dict[str, Callable[[], None]]:
    """A baseline's step, its encoder passes alone, and all of the rest but the optimiser."""
    torch.manual_seed(0)
    encoder = timm_encoder("resnet18", cifar_stem=side <= 32)
    options = {"group": Translation(4)} if name == "ConvIJEPA" else {}
    method = getattr(baselines, name).from_encoder(encoder, action_dim=4, view_shape=(3, side, side), **options)
    method.to(device)
    observed = {"ConvIJEPA": observed, "VICRegTraj": 2}.get(name, 1)
    views = torch.rand(batch, observed + 1, 3, side, side, device=device)
    actions = torch.randn(batch, observed, 4, device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    online: list[int] = []
    averaged: list[int] = []
    handles = [method.encoder.register_forward_hook(lambda *call: online.append(len(call[2])))]
    if isinstance(method, AVERAGED):
        handles.append(method.target.encoder.register_forward_hook(lambda *call: averaged.append(len(call[2]))))
    method(views, actions)  # how many views pass through which encoder
    for handle in handles:
        handle.remove()
    seen = torch.rand(sum(online), 3, side, side, device=device)
    others = torch.rand(sum(averaged), 3, side, side, device=device)
    goal = torch.randn(len(seen), 512, device=device)
    bare = bare_step(copy.deepcopy(encoder), copy.deepcopy(encoder), seen, others, goal, autocast)

    heads = copy.deepcopy(method)
    heads.encoder = Held(torch.randn(len(seen), 512, device=device))
    if averaged:
        heads.target.encoder[0] = Held(torch.randn(len(others), 512, device=device))
    optimizer = adamw([p for p in method.parameters() if p.requires_grad])

    def step() -> None:
        with autocast:
            loss = method(views, actions).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update_target()

    def rest() -> None:
        with autocast:
            loss = heads(views, actions).loss
        loss.backward()
        heads.zero_grad()

    works: dict[str, Callable[[], None]] = {"step": step, "encoder alone": bare, "heads and loss": rest}
    return works | ({"EMA update": method.update_target} if averaged else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, help="a baseline instead of SeqJEPA")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128], help="sides of the views in pixels")
    parser.add_argument("--batch", type=int, default=64, help="sources a step")
    parser.add_argument("--observed", type=int, default=3, help="observed views of a source, T")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="run under bfloat16 autocast")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the clock's, on a busy machine's CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda" and args.cpu_time:
        parser.error("--cpu-time counts no GPU's time; add --device cpu.")

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    what = f"T = {args.observed}" if args.method in (None, "ConvIJEPA") else args.method
    print(f"{name}, {args.threads} CPU threads, torch {torch.__version__}, B = {args.batch}, {what}")
    columns: dict[int, dict[str, str]] = {}
    for side in args.sides:
        shape = (side, args.batch, args.observed, device, args.bf16)
        works = pieces(*shape) if args.method is None else baseline_pieces(args.method, *shape)
        clock = time.process_time if args.cpu_time else time.perf_counter
        times = interleaved(works, args.rounds, device, clock)
        ratios = [a / b for a, b in zip(times["step"], times["encoder alone"], strict=True)]
        base = statistics.median(times["encoder alone"])
        column = {
            "step / encoder alone": f"{statistics.median(ratios):.3f}",
            "(min … max)": f"{min(ratios):.2f} … {max(ratios):.2f}",
        }
        for part, values in times.items():
            median = statistics.median(values)
            column[part] = f"{1e3 * median:.1f} ms" + (
                "" if part in ("step", "encoder alone") else f" ({median / base:.1%})"
            )
        columns[side] = column
    print("| | " + " | ".join(f"{side} px" for side in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for row in next(iter(columns.values())):
        print(f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
