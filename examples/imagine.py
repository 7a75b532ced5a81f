"""How far ahead a model imagines, by what it was trained on: one step, a roll-out, or composed actions.

Three seq-JEPAs learn on features of rendered objects that a frozen network made (frozen_backbone.py computes them
once), and are then asked to imagine five steps ahead of three views. What is left of the pose in what they imagine is
read off by probes, beside what the encoded views hold, what the actions alone tell, and an untrained model.

    python examples/imagine.py                # two minutes on two CPU cores; a table, and runs/imagine/imagine.png

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from claims_model import build, settled
from frozen_backbone import DIM, GROUP, SIDE, VIEWS, Adapter, pretrained_pools
from matplotlib.figure import Figure
from small import small_recipe, train
from torch import Tensor

from seqjepa import SeqJEPA, SeqJEPAOutput, ViewSequence, pair_loss, rollout_loss
from seqjepa.data import ViewPool
from seqjepa.evaluation import Features, Retention, extract, retention

BATCH = 64
OBSERVED, TRAINED, HORIZON = 3, 3, 5  # views seen; steps of a roll-out in training; steps that are asked for


class OneStep(SeqJEPA):
    """The model's own loss: the next view."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """Of a longer sequence the rest is not looked at."""
        return super().forward(views[:, : OBSERVED + 1], actions[:, :OBSERVED], mask)


class RollOut(OneStep):
    """And the next three, its predictions fed back."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """The mean of both losses."""
        out = super().forward(views, actions, mask)
        loss, terms = rollout_loss(self, views, actions, observed=OBSERVED, horizon=TRAINED)
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


class Composed(OneStep):
    """And each observed view alone another, by the composed action."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """The mean of both losses."""
        out = super().forward(views, actions, mask)
        loss, terms = pair_loss(self, out, views[:, : OBSERVED + 1], actions[:, :OBSERVED], GROUP)
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


KINDS: dict[str, type[SeqJEPA]] = {"one step": OneStep, "roll-out of three": RollOut, "composed": Composed}


def new_model(kind: type[SeqJEPA], steps: int, seed: int) -> SeqJEPA:
    """With its first weights, the same whichever loss it has."""
    torch.manual_seed(seed)
    parts = build(SIDE, DIM, GROUP.dim, steps, encoder=Adapter("middle"))
    return kind(parts.encoder, parts.embedder, parts.aggregator, parts.predictor, parts.target)


def batches(pool: ViewPool, seed: int) -> Callable[[], ViewSequence]:
    """Sequences of as many views as the longest roll-out takes."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> ViewSequence:
        rows = torch.randint(len(pool), (min(BATCH, len(pool)),), generator=generator)
        return pool.sample(rows, num_views=OBSERVED + TRAINED, generator=generator)

    return batch


def features(model: SeqJEPA, pool: ViewPool, draws: int, seed: int) -> Features:
    """Of sequences of all views, each object's drawn several times."""
    generator, rows = torch.Generator().manual_seed(seed), torch.arange(len(pool)).repeat(draws)
    return extract(model, pool.sample(rows, num_views=VIEWS, generator=generator), sources=rows)


def draw(found: dict[str, Retention], path: Path) -> None:
    """Retention over steps ahead, a line for each model."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, curves in found.items():
        axis.plot(list(curves.curve), list(curves.curve.values()), "o-", label=name)
    last = found["composed"]
    axis.plot(
        list(last.blank),
        [fit.mean / last.encoded[k].mean for k, fit in last.blank.items()],
        ":",
        label="composed, blank views",
    )
    axis.set(
        xlabel="steps imagined", ylabel="R² of the pose, share of that\nfrom encoded views", xticks=list(last.curve)
    )
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--objects", type=int, default=432, help="to learn from; a third as many are held out")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--features", type=Path, default=Path("runs/frozen"), help="folder of frozen_backbone.py")
    parser.add_argument("--output", type=Path, default=Path("runs/imagine"), help="folder for the figure")
    args = parser.parse_args()
    for name, least in (("steps", 2), ("objects", 48)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}; got {getattr(args, name)}")
    args.output.mkdir(parents=True, exist_ok=True)
    learning, others = pretrained_pools(args.features, args.objects)
    models = {"untrained": settled(new_model(OneStep, 1, args.seed), batches(learning, args.seed))}
    for name, kind in KINDS.items():
        model = new_model(kind, args.steps, args.seed)
        models[name] = train(model, batches(learning, args.seed), args.steps, name, small_recipe(model, args.steps))
    found = {
        name: retention(
            model, features(model, learning, 2, 1), features(model, others, 2, 2), observed=OBSERVED, horizon=HORIZON,
            hidden=(64,), seed=args.seed,
        )
        for name, model in models.items()
    }  # fmt: skip
    print(
        f"\nR² of the pose, held-out objects{'':<10}"
        + "".join(f"{k:>8}" for k in range(1, HORIZON + 1))
        + "  steps ahead"
    )
    for name, one in found.items():
        for what, fits in {
            "imagined": one.imagined,
            "encoded": one.encoded,
            "blank views": one.blank,
            "last view": one.last,
        }.items():
            print(f"{name + ', ' + what:<42}" + "".join(f"{fit.mean:>8.2f}" for fit in fits.values()))
        print(f"{name + ', share retained':<42}" + "".join(f"{kept:>8.2f}" for kept in one.curve.values()))
    draw(found, args.output / "imagine.png")
    print(f"Figure saved as {args.output / 'imagine.png'}")


if __name__ == "__main__":
    main()
