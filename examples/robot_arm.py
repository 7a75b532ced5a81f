"""Learn from videos of a robot arm and what its motors did, in three minutes on a CPU.

An arm with two joints holds one of six tools over a table. Its videos, 40 frames each, are drawn here; the actions are
how far each joint turned from frame to frame. Windows are cut out of them, four views three frames apart, and a small
model learns to predict the last from the first three, without labels. Then it is measured on videos that it never saw,
beside a network that was never trained.

    python examples/robot_arm.py                # the card; all in runs/robot-arm
    python examples/robot_arm.py --steps 2000   # longer

Ctrl-C stops it, and the same command goes on. For videos of your own, put them in the place of what `record` returns:
docs/guides/video.md says how.
Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from claims_model import settled
from command_line import parsed, parser_of
from running import Draws, passes, polite_end
from small import resumable, small_model, small_recipe, train
from torch import Tensor

from seqjepa import SeqJEPA, SeqJEPALoss, VarianceCovariance, ViewSequence
from seqjepa.data import EpisodeWindows, SeededDataset, ViewLoader, show
from seqjepa.evaluation import Scorecard, evaluate, extract
from seqjepa.groups import Translation

SIDE = 32  # pixels of a frame
FRAMES = 40  # of a video
LIMITS = torch.tensor([2.4, 2.4])  # radians either way of shoulder and elbow: joints with a stop are places on a line
TOOLS = ("disc", "ring", "square", "bar", "cross", "wedge")
GROUP = Translation(2)
VIEWS, SKIP, BATCH = 4, 3, 64
VIDEOS_TO_MEASURE, SPARSE = 200, 10  # frames from one window that is measured to the next


def record(videos: int, seed: int) -> list[ViewSequence]:
    """Videos (40, 3, 32, 32) in bytes, actions (39, 2) in radians, joints (40, 2), the tool's number."""
    g = torch.Generator().manual_seed(seed)
    pace = 0.16 * torch.randn(videos, FRAMES, 2, generator=g)
    for t in range(1, FRAMES):
        pace[:, t] += 0.6 * pace[:, t - 1]  # motors do not jump
    begin = math.pi * torch.rand(videos, 1, 2, generator=g)
    joints = LIMITS * (begin + pace.cumsum(1)).sin().asin() / (math.pi / 2)  # turned back at the stops
    tools = torch.randint(len(TOOLS), (videos,), generator=g)
    colours = torch.rand(videos, 3, 3, generator=g)  # of the table, the arm and the tool
    colours[:, 0] *= 0.4
    colours[:, 1:] = 0.45 + 0.55 * colours[:, 1:]
    episodes = []
    for i in range(videos):
        frames = draw(joints[i], int(tools[i]), colours[i])
        frames = frames + 0.04 * torch.randn(frames.shape, generator=g)
        pixels = (255 * frames.clamp(0, 1)).round().byte()
        episodes.append(ViewSequence(pixels, GROUP.actions(joints[i]), joints[i], tools[i], GROUP))
    return episodes


def draw(joints: Tensor, tool: int, colours: Tensor) -> Tensor:
    """Frames (N, 3, 32, 32) of an arm in these postures (N, 2)."""
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    pixels = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)  # (S, S, 2), x to the right, y down
    angles = torch.stack([joints[:, 0], joints.sum(1)], dim=1)
    ways = torch.stack([angles.sin(), -angles.cos()], dim=-1)  # (N, 2, 2): of the upper arm and of the forearm
    elbow = 0.34 * ways[:, 0]
    wrist = elbow + 0.32 * ways[:, 1]
    arm = torch.minimum(to_segment(pixels, torch.zeros_like(elbow), elbow), to_segment(pixels, elbow, wrist)) - 0.075
    centre, along = (wrist + 0.16 * ways[:, 1])[:, None, None], ways[:, 1][:, None, None]
    offset = 0.8 * (pixels - centre)
    v = (offset * along).sum(-1)
    u = offset[..., 0] * along[..., 1] - offset[..., 1] * along[..., 0]
    frames = colours[0].expand(len(joints), SIDE, SIDE, 3)
    for distance, colour in ((arm, colours[1]), (to_tool(tool, u, v), colours[2])):
        covered = (0.5 - distance * SIDE / 2).clamp(0, 1)[..., None]  # smooth over a pixel
        frames = frames + covered * (colour - frames)
    return frames.permute(0, 3, 1, 2)


def to_segment(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(N, S, S): how far each pixel is from each segment."""
    way, offset = (end - start)[:, None, None], pixels - start[:, None, None]
    share = ((offset * way).sum(-1) / (way**2).sum(-1)).clamp(0, 1)
    return (offset - share[..., None] * way).norm(dim=-1)


def to_tool(tool: int, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to a tool, `v` along the forearm and `u` across."""
    a, b, radius = u.abs(), v.abs(), (u**2 + v**2).sqrt()
    shapes = {
        "disc": lambda: radius - 0.19,
        "ring": lambda: (radius - 0.17).abs() - 0.055,
        "square": lambda: torch.maximum(a, b) - 0.17,
        "bar": lambda: torch.maximum(a - 0.28, b - 0.07),
        "cross": lambda: torch.minimum(torch.maximum(a - 0.22, b - 0.06), torch.maximum(a - 0.06, b - 0.22)),
        "wedge": lambda: torch.maximum(v - 0.2, a - 0.24 * (v + 0.2)),
    }
    return shapes[TOOLS[tool]]()


class Relit(SeededDataset):
    """Windows with each view in other colours: a video's stay, and to predict them is easier than to see what moves."""

    def __init__(self, windows: EpisodeWindows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, index: int, generator: torch.Generator) -> ViewSequence:
        """Window `index`, its colours mixed anew."""
        window = self.windows[index]
        mix = torch.randn(VIEWS, 3, 3, generator=generator).softmax(-1)
        gain = 0.5 + torch.rand(VIEWS, 3, 1, generator=generator)
        views = torch.einsum("vij,vjhw->vihw", mix * gain, window.views / 255)
        return window._replace(views=views.clamp(0, 1))


def new_model(settings: argparse.Namespace) -> SeqJEPA:
    """With its first weights."""
    torch.manual_seed(settings.seed)
    model = small_model(SIDE, GROUP.dim, settings.steps)
    model.loss = SeqJEPALoss(regularizer=VarianceCovariance(0, 0.05))  # room for the tool beside the joints
    return model.to(settings.device)


def measured(
    model: SeqJEPA, windows: dict[str, EpisodeWindows], settings: argparse.Namespace, **beside: Any
) -> Scorecard:
    """The card of windows that are counted by their videos: two of one video are no independent witnesses."""
    features = {}
    for name, dataset in windows.items():
        loader = ViewLoader(dataset, batch_size=256, device=settings.device, shuffle=False, drop_last=False)
        features[name] = extract(model, loader, sources=dataset.sources)
    return evaluate(model, features["train"], features["test"], hidden=(64,), seed=settings.seed, **beside)


def main() -> None:
    parser = parser_of(__doc__, output="runs/robot-arm", threads=1)
    parser.add_argument("--steps", type=int, default=800, help="of training [%(default)s]")
    parser.add_argument("--videos", type=int, default=400, help="to learn from [%(default)s]")
    settings = parsed(parser, steps=2, videos=64)
    videos = {"train": record(settings.videos, settings.seed), "test": record(VIDEOS_TO_MEASURE, settings.seed + 1)}
    windows = Relit(EpisodeWindows(videos["train"], num_views=VIEWS, skip=SKIP))
    loader = ViewLoader(windows, batch_size=BATCH, seed=settings.seed, device=settings.device)
    folder = settings.output / f"{settings.videos}-videos-{settings.steps}-steps-seed-{settings.seed}"
    batches, model = passes(loader), new_model(settings)
    recipe = small_recipe(model, settings.steps)
    with polite_end(folder):
        run = resumable(folder, model, recipe, loader=loader, draws=Draws())
        train(model, lambda: next(batches), settings.steps, "training", recipe, run)
        model.save_pretrained(folder / "model")
        untrained = settled(new_model(settings), lambda: next(batches))
        apart = {name: EpisodeWindows(part, num_views=VIEWS, skip=SKIP, stride=SPARSE) for name, part in videos.items()}
        card = measured(model, apart, settings, untrained=measured(untrained, apart, settings))
    card.to_json(folder / "card.json")
    shown = next(iter(ViewLoader(apart["test"], batch_size=4)))
    show(shown).savefig(folder / "views.png", dpi=110)
    print(card)
    print(f"""
In {folder}: card.json, views.png,
and model/, for SeqJEPA.from_pretrained(…, encoder=small_convnet(32)).""")


if __name__ == "__main__":
    main()
