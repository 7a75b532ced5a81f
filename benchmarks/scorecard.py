"""What a scorecard costs beside the encoder's passes over the same views, part by part.

Each part is the public function that makes it, timed in processor seconds of this process, on features encoded once.
The encoder's passes are timed before and after the parts, so that both see the same machine. The views are pictures of
a random object that turns, smooth in the rotation, so that the probes have something to find and train as long as those
of a trained model.

    python benchmarks/scorecard.py                       # 1,000 sources, half as many to score, 8 views each, z of 16
    python benchmarks/scorecard.py --dim 64 --views 10
    python benchmarks/scorecard.py --sources 100 --hidden 32
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from seqjepa import ActionEmbedder, SeqJEPA, ViewSequence
from seqjepa.evaluation import (
    evaluate,
    extract,
    invariance,
    path_integration,
    sensitivity,
    state_transformation_r2,
    top1,
    transformation_r2,
)
from seqjepa.groups import Rotation3D

SIDE, CLASSES = 32, 16
Made = TypeVar("Made")


def turning(sources: int, views: int, seed: int) -> ViewSequence:
    """Pictures of objects of 16 classes that turn: random waves of the turned axes and of the object's own numbers."""
    g, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    q = Rotation3D.from_euler((torch.rand(sources, views, 3, generator=g) - 0.5) * torch.pi / 2)
    labels = torch.arange(sources) % CLASSES
    centres = torch.randn(CLASSES, 6, generator=fixed)
    who = centres[labels] + 0.3 * torch.randn(sources, 6, generator=g)
    known = torch.cat([Rotation3D.to_matrix(q).flatten(2), who[:, None].expand(-1, views, -1)], dim=2)
    waves = torch.randn(15, 3 * 8 * 8, generator=fixed)
    small = 0.5 + 0.5 * (known @ waves).sin().unflatten(2, (3, 8, 8))
    pictures = nn.functional.interpolate(small.flatten(0, 1), (SIDE, SIDE), mode="bilinear")
    pictures = (pictures + 0.1 * torch.randn(pictures.shape, generator=g)).clamp(0, 1)
    return ViewSequence(pictures.unflatten(0, (sources, views)), Rotation3D().actions(q), q, labels, Rotation3D())


def model_of(dim: int) -> SeqJEPA:
    """The paper's model around a small encoder."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 4 * 4, dim), nn.BatchNorm1d(dim, affine=False),
    )  # fmt: skip
    model = SeqJEPA.from_encoder(encoder, action_dim=4, view_shape=(3, SIDE, SIDE), embedder=ActionEmbedder(4, 32))
    model.train()
    with torch.no_grad():
        for _ in range(50):  # statistics of batch norm
            model.encode(turning(32, 4, 1).views)
            model.update_target()
    return model.eval()


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """Processor seconds of this process, and what was made."""
    begun = time.process_time()
    made = work()
    return time.process_time() - begun, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=1000, help="training sources; half as many to score")
    parser.add_argument("--views", type=int, default=8, help="views of a source, at least 4")
    parser.add_argument("--dim", type=int, default=16, help="width of z")
    parser.add_argument("--hidden", type=int, nargs="*", default=[256, 256], help="widths of the probes' hidden layers")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    if args.views < 4 or args.sources < 2 * CLASSES:
        parser.error(f"needs 4 views and {2 * CLASSES} sources at least; got {args.views} and {args.sources}")
    torch.set_num_threads(args.threads)
    model, views = model_of(args.dim), args.views
    train, test = (turning(n, views, seed) for n, seed in ((args.sources, 2), (args.sources // 2, 3)))
    passes, (fit, score) = timed(lambda: (extract(model, train), extract(model, test)))
    hidden: dict[str, Any] = {"hidden": tuple(args.hidden)}
    lengths = sorted({1, 2, 3, 5, views - 1} & {*range(1, views)})
    parts: dict[str, Callable[[], object]] = {
        "top-1": lambda: top1(model, fit, score, num_views=[*lengths[:-1], views]),
        "transformations from z": lambda: transformation_r2(fit, score, **hidden),
        "transformations from states": lambda: [
            state_transformation_r2(model, fit, score, num_views=m, **hidden) for m in (1, views // 2)
        ],
        "invariance": lambda: invariance(model, fit, score, **hidden),
        "paths": lambda: path_integration(model, fit, score, num_views=lengths, **hidden),
        "sensitivity": lambda: sensitivity(model, fit, score, **hidden),
    }
    seconds = {name: timed(work)[0] for name, work in parts.items()}
    seconds["the whole card, encoding too"], _ = timed(lambda: evaluate(model, train, test, progress=False, **hidden))
    again, _ = timed(lambda: (extract(model, train), extract(model, test)))
    passes = (passes + again) / 2
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}; "
        f"{args.sources} sources of {views} views, D = {args.dim}, hidden {tuple(args.hidden)}"
    )
    print("| part | processor seconds | over the encoder's passes |\n|---|---|---|")
    print(f"| encoder and target, each view once | {passes:.2f} | 1 |")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.2f} | {taken / passes:.1f} |")


if __name__ == "__main__":
    main()
