"""Train a small model on handwritten digits and print its card: the one that the page on evaluation reads.

    python docs/make_card.py       # a minute and a quarter of one CPU core

Needs `pip install 'seqjepa[examples]'`. The digits come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from seqjepa import ActionEmbedder, CosineSchedule, SeqJEPA, ViewSequence
from seqjepa.data import RotatedViews
from seqjepa.evaluation import evaluate
from seqjepa.functional import WarmupCosineSchedule

STEPS = 800
TRAINING = 1400  # digits; the other 397 are held out


def build() -> SeqJEPA:
    """The paper's model around a small encoder; the last batch norm centres z."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 36, 32), nn.BatchNorm1d(32, affine=False),
    )  # fmt: skip
    return SeqJEPA.from_encoder(
        encoder,
        action_dim=1,
        view_shape=(1, 12, 12),
        embedder=ActionEmbedder(1, 32),
        momentum=CosineSchedule(0.98, 1.0, STEPS),
    )


def noisy(views: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of each view's own, so that one view does not tell all."""
    return views + 0.3 * torch.randn(views.shape, generator=generator)


def main() -> None:
    """Train, and evaluate on digits that were never seen."""
    torch.manual_seed(0)
    digits = load_digits()
    images = F.interpolate(
        torch.tensor(digits.images[:, None] / 16, dtype=torch.float32),
        size=12,
        mode="bilinear",
    )
    labels = torch.tensor(digits.target)
    sampler, generator = (
        RotatedViews(num_views=5, degrees=45),
        torch.Generator().manual_seed(0),
    )

    def sample(rows: torch.Tensor) -> ViewSequence:
        drawn = sampler(images[rows], generator=generator)
        return drawn._replace(
            views=noisy(drawn.views, generator), labels=labels[rows]
        )

    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    rate = WarmupCosineSchedule(1e-4, 2e-3, 1e-5, 200, STEPS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(STEPS):
        views, actions, *_ = sample(
            torch.randint(TRAINING, (64,), generator=generator)
        )
        optimizer.zero_grad()
        model(views[:, :4], actions[:, :3]).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        model.update_target()

    train = sample(torch.arange(TRAINING))
    test = sample(torch.arange(TRAINING, len(images)))
    print(
        evaluate(model, train, test, untrained=build, hidden=(), progress=False)
    )


if __name__ == "__main__":
    main()
