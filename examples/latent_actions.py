"""Learn what happened between two views from the views alone, in two minutes on two CPU cores, and see if it is so.

Handwritten digits are turned, and nobody says by how much. An inverse model looks at two views and names what happened
in four numbers; a small seq-JEPA takes that for the action. It has seen the view that is to be predicted, so it may
just as well hand that over: the loss is then low, and nothing was learnt about turning. Three ways to train are
compared by six measures on digits that were never seen:

- with nothing against it;
- through a bottleneck: a noisy action that pays for what it tells;
- exchanged: two digits are turned alike, and each is told the action that was read off the other one.

    python examples/latent_actions.py          # three models, a table, and a figure in runs/latent_actions

The encoder is frozen, the first principal components of the views: trained along, it would learn to see no turns at
all, since what does not change is predicted best. Needs `pip install 'seqjepa[examples]'`. The digits come with
scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure, SubFigure
from sklearn.datasets import load_digits
from small import small_recipe, train
from torch import Tensor, nn

from seqjepa import (
    ActionEmbedder,
    ConditionedPredictor,
    GaussianBottleneck,
    InverseModel,
    SeqJEPA,
    SeqJEPAOutput,
    SequenceAggregator,
    StopGradientTarget,
    ViewSequence,
)
from seqjepa.data import RotatedViews
from seqjepa.evaluation import LatentActions, extract, latent_actions
from seqjepa.functional import cosine_distance

SIDE, DIM, EMBED = 16, 32, 32
WIDTH = 4  # numbers in an inferred action: more than the one that there is, for nobody knows how many
POSES = RotatedViews(num_views=2, degrees=180, size=SIDE, border="zero")
TURNS = replace(POSES, degrees=45)
BATCH = 128
TRAIN_DIGITS = 1400  # of 1,797; the rest are held out
PAIRS = 4  # of views of each digit, that regressions learn from
SHARED = 10  # turns of digits that are turned alike
TOGETHER = 40  # digits that are


class Way(NamedTuple):
    """What keeps the next view out of an action."""

    bottleneck: nn.Module | None = None
    exchanged: bool = False


class LatentSeqJEPA(SeqJEPA):
    """seq-JEPA whose actions are inferred from the views; those that come with the views are not looked at."""

    inverse: InverseModel
    exchanged: bool

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """As `SeqJEPA.forward`."""
        z, target = self.encode(views[:, :-1]), self.target(views[:, -1])
        steps = torch.cat([z, target[:, None]], dim=1)  # the last view only the target encoder may see
        inferred, cost, told = self.inverse.infer(steps[:, :-1], steps[:, 1:], mask)
        e = self.embed(InverseModel.exchange(inferred) if self.exchanged else inferred)
        state = self.aggregate(z, e[:, :-1], mask)
        prediction = self.predict(state, e[:, -1])
        loss, terms = self.loss(prediction, target, z, mask)
        return SeqJEPAOutput(loss + cost, prediction, target, state, z, terms | told)


def load_split() -> tuple[Tensor, Tensor]:
    """Images (N, 1, 12, 12) in [0, 1], with a margin to turn in: to train on, and held out."""
    images = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = F.pad(images[order, None], (2, 2, 2, 2))
    return images[:TRAIN_DIGITS], images[TRAIN_DIGITS:]


def turned_views(
    digits: Tensor, turns: int, generator: torch.Generator, *, shared: bool = False, paired: bool = False
) -> ViewSequence:
    """Each digit at an angle of its own, then turned from there in so many ways: 1 + turns views.

    The turns are each digit's own, or those of a digit and its neighbour, or shared by all. The angle to begin with
    never is, or an action could name the angle where it leads, and not the turn, and do for other digits all the same.
    """
    turn = replace(TURNS, num_views=max(2, turns)).draw(len(digits), generator=generator, shared=shared)[:, :turns]
    if paired:
        turn = turn[::2].repeat_interleave(2, dim=0)
    begun = POSES.draw(len(digits), generator=generator)[:, :1]
    turn = torch.cat([torch.zeros_like(begun), turn], dim=1)
    angles = POSES.group.apply(begun, turn)
    return ViewSequence(POSES.render(digits, angles), POSES.group.actions(turn), angles, group=POSES.group)


def frozen_encoder(digits: Tensor, seed: int) -> nn.Module:
    """Views to their principal components: what stands for a pretrained trunk here."""
    views = POSES(digits, generator=torch.Generator().manual_seed(seed)).views.flatten(0, 1).flatten(1)
    mean = views.mean(dim=0)
    linear = nn.Linear(SIDE * SIDE, DIM)
    linear.weight.data = torch.linalg.svd(views - mean, full_matrices=False)[2][:DIM]
    linear.bias.data = -linear.weight.data @ mean
    return nn.Sequential(nn.Flatten(), linear).requires_grad_(False)


def learn(digits: Tensor, encoder: nn.Module, way: Way, steps: int, seed: int, name: str) -> LatentSeqJEPA:
    """A model that has learnt from pairs of views."""
    torch.manual_seed(seed)
    model = LatentSeqJEPA(
        encoder=encoder,
        embedder=ActionEmbedder(WIDTH, EMBED),
        aggregator=SequenceAggregator(DIM + EMBED, dropout=0.0),
        predictor=ConditionedPredictor(DIM + EMBED, EMBED, DIM, 256, depth=2, norm="layer"),
        target=StopGradientTarget(encoder),
    )
    model.inverse, model.exchanged = InverseModel(DIM, WIDTH, way.bottleneck, hidden_dim=256), way.exchanged
    generator = torch.Generator().manual_seed(seed)

    def batch() -> ViewSequence:
        rows = torch.randint(len(digits), (BATCH,), generator=generator)
        return turned_views(digits[rows], 1, generator, paired=way.exchanged)

    return train(model, batch, steps, name, small_recipe(model, steps))


def shared_views(digits: Tensor, seed: int) -> Iterator[ViewSequence]:
    """Some digits at a time, turned alike."""
    generator = torch.Generator().manual_seed(seed)
    for some in digits[: len(digits) // TOGETHER * TOGETHER].split(TOGETHER):
        yield turned_views(some, SHARED, generator, shared=True)


def measure(model: LatentSeqJEPA, digits: Tensor, held_out: Tensor, seed: int) -> LatentActions:
    """All six measures on digits that were not trained on."""
    generator = torch.Generator().manual_seed(seed)
    fit, score = (
        extract(
            model,
            [turned_views(some, 1, generator) for _ in range(PAIRS)],
            inverse=model.inverse,
            sources=torch.arange(len(some)).repeat(PAIRS),
        )
        for some in (digits, held_out)
    )
    shared = extract(model, shared_views(held_out, seed), inverse=model.inverse)
    return latent_actions(model, model.inverse, fit, score, shared, seed=seed)


def rows(one: LatentActions) -> dict[str, float]:
    """What the table says of a model."""
    assert one.transfer is not None
    found = {
        "informative: R² of the turn": one.informative.mean,
        "nothing else: R² from the turn": one.nothing_else.pooled,
        "transfer: MRR by its own action": one.transfer.own.mrr,
        "    by another digit's": one.transfer.others.mrr,
        "    by a wrong one": one.transfer.shuffled.mrr,
        "cut: error at its own view": one.cut.own,
        "    at another digit's": one.cut.cut,
        "    that far apart": one.cut.apart,
        "identity: share of the variance": one.identity.relative,
    }
    for n, r2 in one.few_labels.inferred.items():
        found |= {f"{n} labels: R² of the turn": r2, f"    from z of both views, {n}": one.few_labels.views[n]}
    return found


def report(found: dict[str, LatentActions]) -> None:
    """The table, and what its numbers say, whatever they are."""
    columns, first = {name: rows(one) for name, one in found.items()}, next(iter(found.values()))
    assert first.transfer is not None
    print("\nHeld-out digits. R²: 1 is all, chance is 0. MRR: of the right one among the views of ten digits that were")
    print(f"    turned alike, chance {first.transfer.own.chance.mrr:.2f}. Errors: cosine distances. Identity: variance")
    print("    of the action from a view to itself over that from a view to the next, 1 of a copied view.\n")
    print(f"{'':<34}" + "".join(f"{name:>14}" for name in columns))
    for row in rows(first):
        print(f"{row:<34}" + "".join(f"{column[row]:>14.2f}" for column in columns.values()))
    print()
    for name, one in found.items():
        assert one.transfer is not None
        copied = 100 * (1 - one.cut.relative)
        print(f"{name}: {100 * one.transfer.share:.0f} % of what its own action tells another digit's tells too; shown")
        print(f"    another digit's view, the prediction goes {copied:.0f} % of the way there.")


@torch.no_grad()
def led_to(model: LatentSeqJEPA, views: Tensor, turn: int) -> Tensor:
    """(B,) which of its own views each digit is led to, from its first, by one of the first digit's turns."""
    z, target = model.encode(views), model.target(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    e = model.embed(model.inverse(z[:1, :1], target[:1, turn : turn + 1])).expand(len(z), -1, -1)
    predicted = model.predict(model.aggregate(z[:, :1], e[:, :0]), e[:, 0])
    return cosine_distance(predicted[:, None], target[:, 1:]).argmin(dim=1) + 1


def draw_turns(figure: SubFigure, models: dict[str, LatentSeqJEPA], sequence: ViewSequence) -> None:
    """The first digit's turn, told to the others: what each model finds among their views."""
    views, group = sequence.views, POSES.group
    along = group.along(sequence.actions)
    figure.suptitle("The turn of the first digit, told to others; under each how far off it is")
    turn = int(group.distance(along[0], group.identity()).argmax())
    start = torch.zeros(len(views), dtype=torch.long)
    places = {"shown": start, "to be found": start + turn}
    places |= {name: led_to(model, views, turn) for name, model in models.items()}
    for line, (name, place) in zip(figure.subplots(len(places), len(views)), places.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for i, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            if i and name in models:
                off = group.distance(along[i, place[i]], along[i, turn]).rad2deg()
                axis.set_xlabel(f"{off:.0f}°", fontsize=8, labelpad=1)
            if i or name not in models:
                axis.imshow(views[i, place[i], 0].numpy(), cmap="gray", vmin=0, vmax=1)
            else:
                axis.set_frame_on(False)


def draw_transfer(figure: SubFigure, found: dict[str, LatentActions]) -> None:
    """How well the right view is found by its own action, by another digit's, and by a wrong one."""
    axis = figure.subplots()
    for i, one in enumerate(found.values()):
        assert one.transfer is not None
        told = {"its own action": one.transfer.own, "another digit's": one.transfer.others}
        for j, (name, right) in enumerate((told | {"a wrong one": one.transfer.shuffled}).items()):
            error = [[right.mrr - right.interval.low], [right.interval.high - right.mrr]]
            axis.bar(i + 0.28 * (j - 1), right.mrr, 0.26, color=f"C{j}", yerr=error, label=None if i else name)
    axis.set(xticks=range(len(found)), xticklabels=list(found), ylim=(0, 1.15), ylabel="MRR of the right view")
    axis.legend(loc="upper center", ncols=3, fontsize=8)
    figure.suptitle("Does an action do for another digit?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each model")
    parser.add_argument("--beta", type=float, default=1e-2, help="weight of the bottleneck")
    parser.add_argument("--seed", type=int, default=0, help="one seed, one result")
    parser.add_argument("--output", type=Path, default=Path("runs/latent_actions"), help="folder for the figure")
    args = parser.parse_args()
    if args.steps < 2 or args.beta < 0:
        parser.error(f"--steps must be at least 2, and --beta at least 0; got {args.steps} and {args.beta}")
    digits, held_out = load_split()
    encoder = frozen_encoder(digits, args.seed)
    ways = {"nothing": Way(), "bottleneck": Way(GaussianBottleneck(args.beta)), "exchanged": Way(exchanged=True)}
    models = {name: learn(digits, encoder, way, args.steps, args.seed, name) for name, way in ways.items()}
    found = {name: measure(model, digits, held_out, args.seed + 1) for name, model in models.items()}
    report(found)
    sequence = turned_views(held_out[:9], SHARED, torch.Generator().manual_seed(args.seed + 2), shared=True)
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[0.6, 1])[0]
    draw_transfer(left, found)
    draw_turns(right, models, sequence)
    args.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output / "latent_actions.png", dpi=110)
    print(f"\nFigure saved as {args.output / 'latent_actions.png'}")


if __name__ == "__main__":
    main()
