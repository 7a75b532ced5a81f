"""Turn objects to a goal view by planning, in ten minutes on two CPU cores: what a world model of views is good for.

A small seq-JEPA learns from rendered objects and the rotations between their views, without labels or poses. Then it is
shown one view of an object that it never saw, and a goal: another view, under a lamp and over a floor of other hues.
It plans the turn that leads there, the turn is executed by the renderer, and the angle that is left is measured, beside
doing nothing, a turn at random, and an untrained model's plans.

    python examples/plan.py                                  # a table, and runs/plan/plan.png
    python examples/plan.py --weights runs/plan/model.pt     # the same model again, in a minute

`--weights` also takes what `reproduce_claims.py` keeps of its models, such as `objects-with_actions-0.pt`.

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from claims_model import DECORRELATE, bf16_is_faster, build, settled, with_pairs
from matplotlib.figure import Figure
from objects3d import MOST, OBSERVED, Pool
from small import small_recipe, train
from torch import Tensor

from seqjepa import SeqJEPA, ViewSequence
from seqjepa.data import ObjectParameters, RenderedObjects
from seqjepa.groups import Rotation3D
from seqjepa.planning import CEM, plan

SIDE, DIM, BATCH = 32, 16, 128
BOUND = 1.2  # radians about each axis: a little more than most turns that were trained on
SEARCH = CEM(samples=256, rounds=6, elites=32)
GROUP = Rotation3D()


class Task(NamedTuple):
    """Where each object stands, and how it is to look."""

    start: ObjectParameters  # (B, 1) each
    goal: ObjectParameters
    views: Tensor  # (B, 2, 3, S, S): of start and goal

    def sequence(self) -> ViewSequence:
        """As a model is trained on."""
        return ViewSequence(self.views, GROUP.actions(torch.cat([self.start.rotation, self.goal.rotation], dim=1)))


def draw_task(objects: RenderedObjects, count: int, generator: torch.Generator, *, same_light: bool) -> Task:
    """Two poses of so many objects, within the angles that were trained on."""
    drawn = objects.draw(torch.arange(count), num_views=2, generator=generator)
    angles = MOST * (2 * torch.rand(count, 2, 3, generator=generator) - 1)
    drawn = drawn._replace(rotation=Rotation3D.from_euler(angles))
    fields = {name: field for name, field in drawn._asdict().items() if name != "instance"}
    start, goal = (drawn._replace(**{name: field[:, [i]] for name, field in fields.items()}) for i in (0, 1))
    if same_light:
        goal = start._replace(rotation=goal.rotation)
    return Task(start, goal, torch.cat([objects.render(start), objects.render(goal)], dim=1))


def turned(task: Task, actions: Tensor) -> ObjectParameters:
    """The start after these turns, (B, K, 4)."""
    along = GROUP.path_composition(actions)
    return task.start._replace(rotation=GROUP.apply(task.start.rotation, along[:, None]))


def left(task: Task, reached: ObjectParameters) -> Tensor:
    """(B,) the angle between what was reached and the goal, in degrees."""
    return GROUP.distance(reached.rotation, task.goal.rotation)[:, 0].rad2deg()


def planned(model: SeqJEPA, task: Task, horizon: int, generator: torch.Generator) -> Tensor:
    """(B, K, 4) turns that the model expects to lead to the goal."""
    first = task.views[:, :1]
    none = torch.zeros(len(first), 0, 4)
    return plan(
        model, first, none, task.views[:, 1], horizon=horizon, group=GROUP, search=SEARCH, bounds=BOUND,
        generator=generator,
    ).actions  # fmt: skip


def new_model(steps: int, seed: int) -> SeqJEPA:
    """With its first weights."""
    torch.manual_seed(seed)
    return with_pairs(build(SIDE, DIM, GROUP.dim, steps), GROUP, DECORRELATE)


def learn(objects: int, steps: int, seed: int) -> SeqJEPA:
    """A model that has learnt from so many objects."""
    pool = Pool(RenderedObjects(objects, size=SIDE), 16)
    generator = torch.Generator().manual_seed(seed)

    def batch() -> ViewSequence:
        rows = torch.randint(objects, (min(BATCH, objects),), generator=generator)
        return pool.sample(rows, num_views=OBSERVED + 1, generator=generator)

    model = new_model(steps, seed)
    recipe = small_recipe(model, steps)._replace(half=bf16_is_faster(SIDE))
    return train(model, batch, steps, "training", recipe)


def kept(path: Path) -> SeqJEPA:
    """A model that was trained before."""
    model = new_model(1, 0)
    model.load_state_dict(torch.load(path, weights_only=True)["weights"])
    return model.eval()


def seen(objects: RenderedObjects, seed: int) -> SeqJEPA:
    """An untrained model whose batch norms have seen the objects."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> ViewSequence:
        return draw_task(objects, len(objects), generator, same_light=False).sequence()

    return settled(new_model(1, seed), batch)


def draw(objects: RenderedObjects, task: Task, reached: ObjectParameters, shown: int) -> Figure:
    """Objects before, after the planned turn, and as they were to look."""
    figure = Figure(figsize=(1.4 * shown, 4.6), layout="constrained")
    rows = [task.views[:, 0], objects.render(reached)[:, 0], task.views[:, 1]]
    angles = [left(task, task.start), left(task, reached), None]
    for line, views, degrees, name in zip(
        figure.subplots(3, shown), rows, angles, ("shown", "after the plan", "goal"), strict=True
    ):
        line[0].set_ylabel(name)
        for i, axis in enumerate(line):
            axis.imshow(views[i].permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            if degrees is not None:
                axis.set_title(f"{degrees[i]:.0f}°", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of training")
    parser.add_argument("--objects", type=int, default=2000, help="to learn from")
    parser.add_argument("--weights", type=Path, help="of a model that was trained before, instead of training one")
    parser.add_argument("--tasks", type=int, default=240, help="objects to turn, none of them learnt from")
    parser.add_argument("--horizon", type=int, default=1, help="turns in a plan")
    parser.add_argument("--seed", type=int, default=0, help="of weights, views and plans")
    parser.add_argument("--output", type=Path, default=Path("runs/plan"), help="folder for the figure")
    args = parser.parse_args()
    for name, least in (("steps", 2), ("objects", 32), ("tasks", 8), ("horizon", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}; got {getattr(args, name)}")
    if args.weights is not None and not args.weights.exists():
        parser.error(f"--weights {args.weights} is not there; leave it out to train a model")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.weights is None:
        model = learn(args.objects, args.steps, args.seed)
        torch.save({"weights": model.state_dict()}, args.output / "model.pt")
    else:
        model = kept(args.weights)
    objects = RenderedObjects(args.tasks, size=SIDE, split="val")
    untrained = seen(objects, args.seed)
    print(f"{'angle left, degrees':<34}{'goal in its own light':>24}{'in the light of the start':>28}")
    table: dict[str, list[str]] = {}
    for same_light in (False, True):
        generator = torch.Generator().manual_seed(args.seed)
        task = draw_task(objects, args.tasks, generator, same_light=same_light)
        reached = turned(task, planned(model, task, args.horizon, generator))
        others = GROUP.actions(torch.cat([task.start.rotation.roll(1, 0), task.goal.rotation.roll(1, 0)], dim=1))
        ways = {
            "doing nothing": task.start,
            "the turn of another task": turned(task, others),
            "an untrained model's plan": turned(task, planned(untrained, task, args.horizon, generator)),
            "the plan": reached,
        }
        for name, end in ways.items():
            degrees = left(task, end)
            table.setdefault(name, []).append(f"{degrees.mean():.1f}, median {degrees.median():.1f}")
        nearer = (left(task, reached) < left(task, task.start)).float().mean()
        table.setdefault("plans that lead nearer, %", []).append(f"{100 * nearer:.0f}")
        if not same_light:
            draw(objects, task, reached, 8).savefig(args.output / "plan.png", dpi=120)
    for name, cells in table.items():
        print(f"{name:<34}{cells[0]:>24}{cells[1]:>28}")
    print(f"\nThe turn between the true poses would leave 0. Figure saved as {args.output / 'plan.png'}")


if __name__ == "__main__":
    main()
