"""Train seq-JEPA on handwritten digits in under three minutes on two CPU cores, and see what it learnt.

Each digit is seen in noisy views, turned and shifted a little at random. The model reads a few of them and the actions
between, and predicts the representation of the next, without labels. Probes then measure it on digits it never saw.

    python examples/quickstart.py              # one model, a table, and a figure in runs/quickstart
    python examples/quickstart.py --compare    # the same again without actions, side by side

Needs `pip install 'seqjepa[examples]'`. The digits come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure, SubFigure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn
from tqdm import tqdm

from seqjepa import ActionEmbedder, CosineSchedule, NoActions, SeqJEPA, ViewSequence
from seqjepa.functional import WarmupCosineSchedule

SIDE = 16  # pixels of a view
SCALE = 0.7  # of the view is filled by the digit, so that it stays inside when turned and shifted
MAX_ROTATION = math.radians(30)
MAX_SHIFT = 0.1  # in halves of the view's side; small, or the place of a digit is learnt rather than its class
NOISE = 0.2  # so that one view is not enough to be sure of the digit, and more views help
OBSERVED = 3  # views the model reads before it predicts the next
BATCH = 128
TRAIN_DIGITS = 1400  # of 1,797; the rest are held out
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels: to train on, then held out. The split is the same for every seed."""
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None].to(DEVICE) / 16
    labels = torch.tensor(data.target)[order].to(DEVICE)
    return images[:TRAIN_DIGITS], labels[:TRAIN_DIGITS], images[TRAIN_DIGITS:], labels[TRAIN_DIGITS:]


def make_views(digits: Tensor, n_views: int, generator: torch.Generator) -> ViewSequence:
    """Random views of each digit; an action is the difference in (clockwise rotation, shift down, shift right)."""
    n = len(digits)
    limits = torch.tensor([MAX_ROTATION, MAX_SHIFT, MAX_SHIFT])
    parameters = ((2 * torch.rand(n, n_views, 3, generator=generator) - 1) * limits).to(DEVICE)
    rotation, shift = parameters[..., 0], parameters[..., [2, 1]]  # grid_sample wants x before y
    cos, sin = rotation.cos(), rotation.sin()
    # grid_sample asks where in the digit a pixel of the view comes from: undo the shift, then rotation and scale.
    inverse = torch.stack([cos, sin, -sin, cos], dim=-1).unflatten(-1, (2, 2)) / SCALE
    affine = torch.cat([inverse, -inverse @ shift[..., None]], dim=-1).flatten(0, 1)
    grid = F.affine_grid(affine, [n * n_views, 1, SIDE, SIDE], align_corners=False)
    views = F.grid_sample(digits.repeat_interleave(n_views, dim=0), grid, align_corners=False)
    views = (views + NOISE * torch.randn(views.shape, generator=generator).to(DEVICE)).clamp(0, 1)
    return ViewSequence(views.unflatten(0, (n, n_views)), parameters[:, 1:] - parameters[:, :-1], parameters)


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def small_convnet(width: int = 16, dim: int = 16) -> nn.Module:
    """Any module from images (N, C, H, W) to vectors (N, D) is an encoder; a small D makes it choose what to keep."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),  # centred: otherwise all digits point the same way, and cosines say little
    ).to(memory_format=torch.channels_last)  # fmt: skip


def train(digits: Tensor, embedder: nn.Module, steps: int, seed: int, name: str) -> SeqJEPA:
    """The paper's recipe, scaled down: predict the view after the observed ones, and let the target follow."""
    generator = torch.Generator().manual_seed(seed)
    momentum = CosineSchedule(0.98, 1.0, steps)  # a short run needs a target that follows faster than the paper's
    model = SeqJEPA.from_encoder(
        small_convnet(), action_dim=3, view_shape=(1, SIDE, SIDE), embedder=embedder, momentum=momentum
    ).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)  # the schedule sets the rate
    rate = WarmupCosineSchedule(1e-4, 2e-3, 1e-5, warmup_steps=min(50, steps - 1), total_steps=steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in (progress := tqdm(range(steps), desc=name, unit="step")):
        batch = digits[torch.randint(len(digits), (BATCH,), generator=generator)]
        views, actions, *_ = make_views(batch, OBSERVED + 1, generator)
        out = model(views, actions)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        scheduler.step()
        model.update_target()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{out.loss.item():.3f}")
    return model.eval()  # from here on batch norm uses its running statistics


@torch.no_grad()
def represent(model: SeqJEPA, digits: Tensor, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw five views of every digit, `draws` times: z of the last view, states of the last one, three and five."""
    rows = []
    for _ in range(draws):
        views, actions, parameters = make_views(digits, 5, generator)[:3]
        z, e = model.encode(views), model.embed(actions)
        states = {f"state {m}": model.aggregate(z[:, 5 - m :], e[:, 5 - m :]) for m in (1, 3, 5)}
        rows.append({"z": z[:, -1], **states, "parameters": parameters[:, -1]})
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}  # (draws, N, ...) each


def probe(head: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, x_test: Tensor, generator: torch.Generator) -> Tensor:
    """Train a head on frozen features, and return what it says of held-out ones."""
    net = nn.Sequential(nn.BatchNorm1d(x.shape[1], affine=False), head).to(DEVICE)  # batch norm standardises
    batches, epochs = len(x) // 512, 8
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: batches * 512].split(512):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        return net.eval()(x_test)


def accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, generator: torch.Generator) -> float:
    """Percent of held-out rows that a linear probe puts in the right one of ten classes."""
    logits = probe(nn.Linear(x.shape[1], 10), nn.CrossEntropyLoss(), x, y, x_test, generator)
    return 100 * (logits.argmax(dim=1) == y_test).float().mean().item()


def r_squared(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, generator: torch.Generator) -> Tensor:
    """Share of the variance of each number of the held-out actions that an MLP explains, (3,)."""
    mlp = nn.Sequential(
        nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)
    )
    scale = y.std(dim=0)  # rotation and shifts count alike
    errors = y_test - scale * probe(mlp, nn.MSELoss(), x, y / scale, x_test, generator)
    return 1 - errors.square().sum(dim=0) / (y_test - y_test.mean(dim=0)).square().sum(dim=0)


def measure(model: SeqJEPA, split: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> dict[str, float]:
    """The rows of the table: probes learn on views of the training digits and are scored on the held-out ones."""
    digits, labels, digits_test, labels_test = split
    torch.manual_seed(seed)  # weights and dropout of the probes
    generator = torch.Generator().manual_seed(seed + 1)
    fit, test = represent(model, digits, 24, generator), represent(model, digits_test, 8, generator)
    y, y_test = labels.repeat(24), labels_test.repeat(8)
    table: dict[str, float] = {}
    for name in ("z", "state 1", "state 3", "state 5"):
        table[f"accuracy %, {name}"] = accuracy(fit[name].flatten(0, 1), y, test[name].flatten(0, 1), y_test, generator)

    def pairs(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(0, 1), x.roll(-1, dims=0).flatten(0, 1)  # each draw with the next one of the same digit

    (a, b), (a_test, b_test) = pairs(fit["parameters"]), pairs(test["parameters"])
    for name in ("z", "state 1", "state 5"):
        x, x_test = torch.cat(pairs(fit[name]), dim=1), torch.cat(pairs(test[name]), dim=1)
        rotation, *shift = r_squared(x, b - a, x_test, b_test - a_test, generator).tolist()
        table[f"R² rotation, {name}"], table[f"R² shift, {name}"] = rotation, sum(shift) / 2
    return table


def draw_views(figure: SubFigure, digits: Tensor, generator: torch.Generator) -> None:
    views, actions, *_ = make_views(digits, OBSERVED + 1, generator)
    figure.suptitle("Views of a digit, and the action (turn, down, right) to the next")
    for (row, t), axis in np.ndenumerate(figure.subplots(len(digits), OBSERVED + 1)):
        axis.imshow(views[row, t, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[], title="" if row else f"view {t + 1}" if t < OBSERVED else "to predict")
        if t < OBSERVED:
            turn, down, right = actions[row, t].tolist()
            axis.set_xlabel(f"{math.degrees(turn):+.0f}°, {down:+.2f}, {right:+.2f}  →", fontsize=7.5)


def draw_planes(figure: SubFigure, features: dict[str, Tensor], labels: np.ndarray) -> None:
    """Colours by class in the plane of all, by rotation of the last view in the plane of a digit's own variation."""
    degrees = features["parameters"][..., 0].flatten().rad2deg().cpu().numpy()
    grid = figure.subplots(2, 2, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for axes, x, name in zip(grid, (features["z"], features["state 5"]), ("z of a view", "state of five"), strict=True):
        across, within = (PCA(2).fit_transform(part.flatten(0, 1).cpu().numpy()) for part in (x, x - x.mean(dim=0)))
        by_class = axes[0].scatter(*across.T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=6, linewidths=0)
        figure.colorbar(by_class, ax=axes[0], ticks=range(10))
        by_rotation = axes[1].scatter(*within.T, c=degrees, cmap="coolwarm", s=6, linewidths=0)
        figure.colorbar(by_rotation, ax=axes[1], format="%+d°")
        axes[0].set_title(f"{name}, by class")
        axes[1].set_title("less its digit's mean, by rotation")
    figure.suptitle("Held-out digits in the plane of two principal components")


def draw(model: SeqJEPA, digits: Tensor, labels: Tensor, path: Path) -> None:
    """Left: sequences of views. Right: z and state of held-out digits."""
    generator = torch.Generator().manual_seed(0)
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[0.72, 1])[0]
    draw_views(left, digits[:5], generator)
    draw_planes(right, represent(model, digits, 6, generator), labels.repeat(6).cpu().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"Figure saved as {path}")


def report(columns: dict[str, dict[str, float]]) -> None:
    """The table, and what its numbers say, whatever they are."""
    print("\nHeld-out digits; z of one view, state m of m views. accuracy: of a linear probe, ten classes.")
    print("R²: share of the variance of the action between the last views of two sequences that an MLP explains,")
    print("    given both views' z or both sequences' states; shift is the mean of down and right.\n")
    print(" " * 22 + "".join(f"{name:>17}" for name in columns))
    for row in columns["with actions"]:
        print(f"{row:<22}" + "".join(f"{c[row]:>17.{1 if '%' in row else 2}f}" for c in columns.values()))

    def change(before: float, after: float) -> str:
        return f"{'rises' if after > before else 'falls'} from {before:.3g} to {after:.3g}"

    t, bare = columns["with actions"], columns.get("without actions")
    print(f"\nFrom z of one view to state 5, accuracy {change(t['accuracy %, z'], t['accuracy %, state 5'])} %")
    print(f"and the R² of rotation {change(t['R² rotation, z'], t['R² rotation, state 5'])}.")
    if bare:
        print(f"Without actions, the R² of rotation from z {change(t['R² rotation, z'], bare['R² rotation, z'])}")
        print(f"and the accuracy of state 5 {change(t['accuracy %, state 5'], bare['accuracy %, state 5'])} %.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="one seed, one result")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps")
    parser.add_argument("--compare", action="store_true", help="also train without actions")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder for the figure")
    args = parser.parse_args()
    split = load_split()
    torch.manual_seed(args.seed)  # weights and dropout; the views have a generator of their own
    model = train(split[0], ActionEmbedder(action_dim=3, embed_dim=16), args.steps, args.seed, "with actions")
    columns = {"with actions": measure(model, split, args.seed)}
    draw(model, split[2], split[3], args.output / "quickstart.png")
    if args.compare:
        torch.manual_seed(args.seed)
        ablation = train(split[0], NoActions(), args.steps, args.seed, "without actions")
        columns["without actions"] = measure(ablation, split, args.seed)
    report(columns)


if __name__ == "__main__":
    main()
