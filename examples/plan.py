"""Turn objects to a goal view by planning, in ten minutes on two CPU cores: what a world model of views is good for.

A small seq-JEPA learns from rendered objects and the rotations between their views, without labels or poses. Then it is
shown one view of an object that it never saw, and a goal: another view, under a lamp and over a floor of other hues.
It plans the turn that leads there, the turn is executed by the renderer, and the angle that is left is measured, beside
doing nothing, a turn at random, and an untrained model's plans.

    python examples/plan.py                # a table, a figure, the model; all in runs/plan
    python examples/plan.py --horizon 2    # other plans of the model that is there by now, in a minute

Ctrl-C stops it, and the same command goes on. `--weights` takes what `reproduce_claims.py` keeps of its models, such as
`objects-with_actions-0.pt`, instead of training one.

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from claims_model import DECORRELATE, bf16_is_faster, build, settled, with_pairs
from command_line import parsed, parser_of
from matplotlib.figure import Figure
from objects3d import MOST, OBSERVED, Pool
from resumed import as_json, write
from running import Draws, polite_end
from small import resumable, small_recipe, train
from torch import Tensor
from tqdm import tqdm

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
    drawn = drawn._replace(rotation=Rotation3D.from_euler(angles).to(objects.device))
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
    none = first.new_zeros(len(first), 0, 4)
    return plan(
        model, first, none, task.views[:, 1], horizon=horizon, group=GROUP, search=SEARCH, bounds=BOUND,
        generator=generator,
    ).actions  # fmt: skip


def new_model(steps: int, seed: int, device: torch.device) -> SeqJEPA:
    """With its first weights."""
    torch.manual_seed(seed)
    return with_pairs(build(SIDE, DIM, GROUP.dim, steps), GROUP, DECORRELATE).to(device)


def learn(args: argparse.Namespace, folder: Path) -> SeqJEPA:
    """A model that has learnt from so many objects, goes on where it stopped, and is kept."""
    pool = Pool(RenderedObjects(args.objects, size=SIDE, device=args.device), 16)
    generator = torch.Generator().manual_seed(args.seed)

    def batch() -> ViewSequence:
        rows = torch.randint(args.objects, (min(BATCH, args.objects),), generator=generator)
        return pool.sample(rows, num_views=OBSERVED + 1, generator=generator)

    model = new_model(args.steps, args.seed, args.device)
    half = args.device.type == "cuda" or bf16_is_faster(SIDE)
    recipe = small_recipe(model, args.steps)._replace(half=half)
    run = resumable(folder, model, recipe, draws=Draws(generator))
    train(model, batch, args.steps, "training", recipe, run)
    torch.save({"weights": model.state_dict()}, folder / "model.pt")
    return model


def kept(path: Path, device: torch.device) -> SeqJEPA:
    """A model that was trained before."""
    model = new_model(1, 0, device)
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True)["weights"])
    return model.eval()


def seen(objects: RenderedObjects, seed: int) -> SeqJEPA:
    """An untrained model whose batch norms have seen the objects."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> ViewSequence:
        return draw_task(objects, len(objects), generator, same_light=False).sequence()

    return settled(new_model(1, seed, objects.device), batch)


class Turned(NamedTuple):
    """What came of a plan: where the object is after it, and what is left to the goal."""

    task: Task
    reached: ObjectParameters
    rows: dict[str, Tensor]  # (B,) degrees that are left, by the way that was taken


def carry_out(model: SeqJEPA, untrained: SeqJEPA, objects: RenderedObjects, args: argparse.Namespace) -> list[Turned]:
    """Plan, turn and measure: goals in their own light, then in that of the start."""
    found = []
    with tqdm(total=4, desc="planning", unit="plan of each task", leave=False) as bar:
        for same_light in (False, True):
            generator = torch.Generator().manual_seed(args.seed)
            task = draw_task(objects, args.tasks, generator, same_light=same_light)
            reached = turned(task, planned(model, task, args.horizon, generator))
            bar.update()
            others = GROUP.actions(torch.cat([task.start.rotation.roll(1, 0), task.goal.rotation.roll(1, 0)], dim=1))
            ways = {
                "doing nothing": task.start,
                "the turn of another task": turned(task, others),
                "an untrained model's plan": turned(task, planned(untrained, task, args.horizon, generator)),
                "the plan": reached,
            }
            bar.update()
            found.append(Turned(task, reached, {name: left(task, end) for name, end in ways.items()}))
    return found


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
            axis.imshow(views[i].permute(1, 2, 0).cpu().numpy())
            axis.set(xticks=[], yticks=[])
            if degrees is not None:
                axis.set_title(f"{degrees[i]:.0f}°", fontsize=8)
    return figure


def report(found: list[Turned]) -> str:
    """The table: a row for each way, a column for each light."""
    rows: dict[str, list[str]] = {}
    for one in found:
        for name, degrees in one.rows.items():
            rows.setdefault(name, []).append(f"{degrees.mean():.1f}, median {degrees.median():.1f}")
        nearer = (one.rows["the plan"] < one.rows["doing nothing"]).float().mean()
        rows.setdefault("plans that lead nearer, %", []).append(f"{100 * nearer:.0f}")
    head = f"{'angle left, degrees':<34}{'goal in its own light':>24}{'in the light of the start':>28}"
    return "\n".join([head, *(f"{name:<34}{cells[0]:>24}{cells[1]:>28}" for name, cells in rows.items())])


def main() -> None:
    parser = parser_of(__doc__, output="runs/plan")
    parser.add_argument("--steps", type=int, default=4000, help="of training [%(default)s]")
    parser.add_argument("--objects", type=int, default=2000, help="to learn from [%(default)s]")
    parser.add_argument("--weights", type=Path, help="of a model that was trained before, instead of training one")
    parser.add_argument("--tasks", type=int, default=240, help="objects to turn, none learnt from [%(default)s]")
    parser.add_argument("--horizon", type=int, default=1, help="turns in a plan [%(default)s]")
    args = parsed(parser, steps=2, objects=32, tasks=8, horizon=1)
    if args.weights is not None and not args.weights.exists():
        parser.error(f"--weights {args.weights} is not there; leave it out to train a model")
    trained = f"{args.objects}-objects-{args.steps}-steps-seed-{args.seed}"
    folder = args.output / (trained if args.weights is None else f"{args.weights.stem}-seed-{args.seed}")
    with polite_end(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model = learn(args, folder) if args.weights is None else kept(args.weights, args.device)
        objects = RenderedObjects(args.tasks, size=SIDE, split="val", device=args.device)
        found = carry_out(model, seen(objects, args.seed), objects, args)
    picture, degrees = folder / f"plan-{args.horizon}.png", folder / f"degrees-{args.horizon}.json"
    draw(objects, found[0].task, found[0].reached, 8).savefig(picture, dpi=120)
    lights = ("own light", "light of the start")
    rows = ({name: values.tolist() for name, values in one.rows.items()} for one in found)
    write(degrees, as_json(dict(zip(lights, rows, strict=True))))
    print(report(found))
    print("\nThe turn between the true poses would leave 0.")
    print(f"In {folder}: {picture.name}, {degrees.name} (every task)" + ", model.pt." * (args.weights is None))


if __name__ == "__main__":
    main()
