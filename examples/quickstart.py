"""Train seq-JEPA on handwritten digits in two minutes on a CPU, and see what the actions taught it.

Each digit is seen in noisy views, turned and shifted a little at random. A model reads three of them and the actions
between, and predicts the representation of the fourth, without labels. A second model is told no actions. Both are then
measured on digits that they never saw.

    python examples/quickstart.py                # two models, a table, a figure; all in runs/quickstart
    python examples/quickstart.py --steps 3000   # longer
    python examples/quickstart.py --seed 1       # another pair

Ctrl-C stops it, and the same command goes on. Needs `pip install 'seqjepa[examples]'`. The digits come with
scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from command_line import parsed, parser_of
from quickstart_figure import comparison, numbers
from running import passes, polite_end
from sklearn.datasets import load_digits
from small import print_table, small_convnet
from torch import Tensor
from tqdm import tqdm

from seqjepa import ActionEmbedder, CosineSchedule, NoActions, SeqJEPA, ViewSequence
from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.evaluation import Monitor, Scorecard, evaluate
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.training import Checkpoints, seed_step, weight_groups

SIDE = 16  # pixels of a view
NAMES = {True: "with actions", False: "without actions"}
Digits = list[tuple[Tensor, Tensor]]


class NoisyViews(RotatedViews):
    """The library's sampler, and pixel noise on top: one view is not enough to be sure of the digit."""

    def __call__(
        self, images: Tensor, *, generator: torch.Generator | None = None, shared: bool = False
    ) -> ViewSequence:
        sequence = super().__call__(images, generator=generator, shared=shared)
        noise = torch.randn(sequence.views.shape, generator=generator, device=images.device)
        return sequence._replace(views=(sequence.views + 0.2 * noise).clamp(0, 1))


# Small turns and shifts: at ±180° a small encoder cannot learn to look past them, and without actions keeps them too.
SAMPLER = NoisyViews(num_views=4, degrees=30, shift=0.05, size=SIDE, border="zero")


def split() -> tuple[Digits, Digits]:
    """1,400 digits to learn from, 397 to measure on: images (1, 12, 12) in [0, 1] with a margin, and labels."""
    data = load_digits()
    images = F.pad(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, (2, 2, 2, 2))
    digits = list(zip(images, torch.tensor(data.target), strict=True))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    return [digits[i] for i in order[:1400]], [digits[i] for i in order[1400:]]


def build(settings: argparse.Namespace, with_actions: bool) -> SeqJEPA:
    """The paper's model around a small encoder, with its first weights."""
    torch.manual_seed(settings.seed)
    return SeqJEPA.from_encoder(
        small_convnet(SIDE, channels=1),
        action_dim=SAMPLER.group.dim,  # turn, shift down, shift right
        view_shape=(1, SIDE, SIDE),
        embedder=ActionEmbedder(SAMPLER.group.dim, 16) if with_actions else NoActions(),
        momentum=CosineSchedule(0.98, 1.0, settings.steps),  # a short run needs a target that follows fast
    ).to(settings.device)


def learn(model: SeqJEPA, digits: Digits, settings: argparse.Namespace, folder: Path) -> SeqJEPA:
    """The whole loop: predict the next view, let the target follow, watch for collapse, and keep all of it."""
    optimizer = torch.optim.AdamW(weight_groups(model, 0.1), lr=1.0)  # the schedule sets the rate
    rate = WarmupCosineSchedule(1e-4, 2e-3, 1e-5, warmup_steps=min(50, settings.steps - 1), total_steps=settings.steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    loader = ViewLoader(digits, SAMPLER, batch_size=128, seed=settings.seed, device=settings.device)
    monitor = Monitor(every=250)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    run = Checkpoints(folder, keep=1, loader=loader, monitor=monitor, **parts)
    begun, batches = run.restore(), passes(loader)  # at 0 where nothing is there yet
    for step in tqdm(range(begun, settings.steps), initial=begun, total=settings.steps, desc=folder.name, unit="step"):
        seed_step(settings.seed, step)  # dropout: a run that goes on draws what it would have drawn
        views, actions, *_ = next(batches)
        out = model(views, actions)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        scheduler.step()
        model.update_target()
        seen = {"z": out.z, "state": out.state, "prediction": out.prediction, "target": out.target}
        report = monitor(**seen, encoder=model.encoder, target_encoder=model.target)
        if report is not None:
            tqdm.write(str(report))
        if (step + 1) % 250 == 0 or step + 1 == settings.steps:
            run.save(step + 1)
    return model


def measure(model: SeqJEPA, digits: tuple[Digits, Digits], settings: argparse.Namespace, **beside: Any) -> Scorecard:
    """The library's scorecard, of five views of each digit. Probes learn on the training digits."""
    sampler = replace(SAMPLER, num_views=5)
    options: dict[str, Any] = {"batch_size": 512, "device": settings.device, "shuffle": False, "drop_last": False}
    train, test = (ViewLoader(part, sampler, seed=seed, **options) for seed, part in enumerate(digits))
    return evaluate(model, train, test, hidden=(64,), seed=settings.seed, **beside)


def main() -> None:
    parser = parser_of(__doc__, output="runs/quickstart", threads=1)
    parser.add_argument("--steps", type=int, default=1000, help="of training, for each model [%(default)s]")
    settings = parsed(parser, steps=2)
    folder, digits = settings.output / f"{settings.steps}-steps-seed-{settings.seed}", split()
    cards: dict[str, Any] = {}
    with polite_end(folder):
        for with_actions, name in NAMES.items():
            place = folder / name.replace(" ", "-")
            model = learn(build(settings, with_actions), digits[0], settings, place)
            model.save_pretrained(place / "model")
            untrained = build(settings, with_actions) if with_actions else None
            cards[name] = measure(model, digits, settings, untrained=untrained)
            cards[name].to_json(place / "card.json")
            (place / "card.txt").write_text(f"{cards[name]}\n", encoding="utf-8")
    cards["untrained"] = cards["with actions"].untrained
    columns = {name: numbers(card) for name, card in cards.items()}
    comparison(columns).savefig(folder / "quickstart.png", dpi=130)
    print("\nOf 397 digits that no model has seen; R² is of what a probe reads off two z, or off two states.\n")
    print_table(columns)
    print(f"""All of it is in {folder}: quickstart.png, and for each model card.txt, card.json (every measure)
and model/, for SeqJEPA.from_pretrained(…, encoder=small_convnet(16, channels=1)).
Next: images of your own by examples/train.py --data FOLDER, videos by docs/guides/video.md.""")


if __name__ == "__main__":
    main()
