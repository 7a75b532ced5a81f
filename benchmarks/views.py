"""Views per second of every sampler, beside the same work done image by image with torchvision and PIL.

Both take turns in one process, so that they see the same machine. Ours starts from a batch of floats on the device.
Image by image, on one thread of the CPU, the work starts from decoded PIL images and ends with a float tensor a view.
Rates are the best of the rounds, which on a shared machine is what each can do; `--cpu-time` goes further.

    python benchmarks/views.py                           # one thread, or the GPU where there is one
    python benchmarks/views.py --threads 2               # more; the ratio stays one per core
    python benchmarks/views.py --only saccades           # those whose name holds a word
    python benchmarks/views.py --cpu-time                # views per second of one core's time, on a busy machine

Needs torchvision.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from seqjepa.data import AugmentedViews, RenderedObjects, RotatedViews, SaccadeViews
from seqjepa.types import ViewSequence

VIEWS = 4  # of a source: three observed, one to predict
SACCADES = 5
ONE_BY_ONE = 64  # sources a round; the rate does not depend on it
LONGEST = 30.0  # seconds for the rounds of one row, so that the slow ones end


class Case(NamedTuple):
    """A sampler: its work on a batch of n sources, and the views of one PIL image made the slow way."""

    name: str
    views: int
    batched: Callable[[int], Callable[[], ViewSequence]]
    one: Callable[[int], Callable[[], list[Tensor]]] | None


def pictures(n: int, side: int) -> Tensor:
    """Smooth images (n, 3, side, side) in [0, 1]."""
    small = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)


def pil(images: Tensor) -> list[Image.Image]:
    return [TF.to_pil_image(image) for image in images]


def augmentations(size: int, device: torch.device) -> Case:
    sampler = (AugmentedViews.cifar if size == 32 else AugmentedViews.tiny_imagenet)(VIEWS)
    generator = torch.Generator(device).manual_seed(0)

    def batched(n: int) -> Callable[[], ViewSequence]:
        images = pictures(n, size).to(device)
        return lambda: sampler(images, generator=generator)

    def one(n: int) -> Callable[[], list[Tensor]]:
        images = pil(pictures(n, size))
        blur = T.GaussianBlur(2 * round((size - 10) / 20) + 1, (0.1, 2.0))
        colours = [T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), T.RandomGrayscale(0.2)]
        crop = [
            T.RandomResizedCrop(size, (0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip(),
        ]  # fmt: skip
        observed = T.Compose([*crop, *colours, blur, T.ToTensor()])
        predicted = T.Compose([*crop, *colours, T.RandomApply([blur], 0.1), T.RandomSolarize(128, 0.2), T.ToTensor()])
        recipes = [observed] * (VIEWS - 1) + [predicted]
        return lambda: [recipe(image) for image in images for recipe in recipes]

    return Case(f"AugmentedViews, {size} px", VIEWS, batched, one)


def rotations(size: int, device: torch.device) -> Case:
    sampler, generator = RotatedViews(VIEWS), torch.Generator(device).manual_seed(0)
    disc, ground = Image.new("L", (size, size), 0), Image.new("RGB", (size, size), (128, 128, 128))
    ImageDraw.Draw(disc).ellipse((0, 0, size - 1, size - 1), fill=255)

    def batched(n: int) -> Callable[[], ViewSequence]:
        images = pictures(n, size).to(device)
        return lambda: sampler(images, generator=generator)

    def turned(image: Image.Image) -> Tensor:
        turn = TF.rotate(image, random.uniform(-180, 180), T.InterpolationMode.BILINEAR)
        view: Tensor = TF.to_tensor(Image.composite(turn, ground, disc))
        return view

    def one(n: int) -> Callable[[], list[Tensor]]:
        images = pil(pictures(n, size))
        return lambda: [turned(image) for image in images for _ in range(VIEWS)]

    return Case(f"RotatedViews, {size} px", VIEWS, batched, one)


def saccades(side: int, fovea: int, device: torch.device) -> Case:
    sampler, generator = SaccadeViews(num_views=SACCADES, fovea=fovea), torch.Generator(device).manual_seed(0)
    first, last = fovea // 2, side - math.ceil(fovea / 2)

    def maps(n: int) -> Tensor:
        return pictures(n, side).mean(dim=1).square()

    def batched(n: int) -> Callable[[], ViewSequence]:
        images, saliency = pictures(n, side).to(device), maps(n).to(device)
        return lambda: sampler(images, saliency=saliency, generator=generator)

    def gaze(image: Image.Image, saliency: Tensor) -> list[Tensor]:
        weights = torch.zeros_like(saliency)
        weights[first : last + 1, first : last + 1] = saliency[first : last + 1, first : last + 1]
        patches = []
        for _ in range(SACCADES):
            row, column = divmod(int(torch.multinomial((weights / weights.sum()).flatten(), 1)), side)
            top, left = row - fovea // 2, column - fovea // 2
            weights[max(0, top) : top + fovea + 1, max(0, left) : left + fovea + 1] = 0
            patches.append(TF.to_tensor(image.crop((left, top, left + fovea, top + fovea))))
        return patches

    def one(n: int) -> Callable[[], list[Tensor]]:
        images, saliency = pil(pictures(n, side)), maps(n)
        return lambda: [patch for image, map_ in zip(images, saliency, strict=True) for patch in gaze(image, map_)]

    return Case(f"SaccadeViews, {side} px, fovea {fovea}", SACCADES, batched, one)


def objects(size: int, device: torch.device) -> Case:
    rendered = RenderedObjects(num_instances=2000, size=size, seed=0, device=device)
    generator = torch.Generator(device).manual_seed(0)

    def batched(n: int) -> Callable[[], ViewSequence]:
        instances = torch.arange(n, device=device)
        return lambda: rendered.sample(instances, num_views=VIEWS, generator=generator)

    return Case(f"RenderedObjects, {size} px", VIEWS, batched, None)


def cases(device: torch.device) -> dict[str, Callable[[], Case]]:
    """By a word; built when it is their turn."""
    return {
        "augmentations 32": lambda: augmentations(32, device),
        "augmentations 64": lambda: augmentations(64, device),
        "rotations 32": lambda: rotations(32, device),
        "saccades 96": lambda: saccades(96, 32, device),
        "objects 32": lambda: objects(32, device),
        "objects 64": lambda: objects(64, device),
        "objects 128": lambda: objects(128, device),
    }


def seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Time of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def rates(
    case: Case, batch: int, rounds: int, threads: int, device: torch.device, clock: Callable[[], float]
) -> tuple[float, float | None]:
    """Best views per second, ours and image by image, in turns, after a round of warm-up for each."""
    ours, times, slow_times = case.batched(batch), [], []
    few = min(batch, ONE_BY_ONE)
    slow = None if case.one is None else case.one(few)
    started = time.perf_counter()
    for turn in range(rounds + 1):
        torch.set_num_threads(threads)
        times.append(seconds(ours, device, clock))
        torch.set_num_threads(1)
        if slow is not None:
            slow_times.append(seconds(slow, torch.device("cpu"), clock))
        if turn >= 2 and time.perf_counter() - started > LONGEST:
            break
    views = case.views * batch / min(times[1:])
    return views, case.views * few / min(slow_times[1:]) if slow is not None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512], help="sources a batch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for ours")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds; fewer where they take long")
    parser.add_argument("--only", default="", help="run the rows whose name holds this")
    parser.add_argument("--cpu-time", action="store_true", help="count the time of the cores, not that of the wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    random.seed(0)
    torch.manual_seed(0)  # torchvision's transforms draw from the global generator

    cuda = device.type == "cuda"
    if cuda and args.cpu_time:
        parser.error("--cpu-time counts no GPU's time; add --device cpu.")
    clock = time.process_time if args.cpu_time else time.perf_counter  # of all threads together
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    cores = 1 if cuda or args.cpu_time else args.threads
    where = "1 GPU" if cuda else f"{args.threads} CPU thread(s)"
    unit = "second of a core's time" if args.cpu_time else "second"
    print(f"{name}, {where}, torch {torch.__version__}; views per {unit}")
    print(f"| sampler | batch | ours | image by image | ratio {'to one core' if cuda else 'per core'} |")
    print("|---|---|---|---|---|")
    for word, build in cases(device).items():
        if args.only not in word:
            continue
        case = build()
        for batch in args.batches:
            ours, slow = rates(case, batch, args.rounds, args.threads, device, clock)
            other = "–" if slow is None else f"{slow:,.0f}"
            ratio = "–" if slow is None else f"{ours / cores / slow:.1f}"
            print(f"| {case.name} | {batch} | {ours:,.0f} | {other} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
