"""The model that the claims are tried with: what learns most in an hour of two CPU cores, and says what it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import torch
from small import ResidualBlock, small_recipe, train
from torch import Tensor, nn

from seqjepa import (
    ActionEmbedder,
    ConditionedPredictor,
    CosineSchedule,
    EMATarget,
    NoActions,
    SeqJEPA,
    SeqJEPALoss,
    SeqJEPAOutput,
    SequenceAggregator,
    VarianceCovariance,
    ViewSequence,
    pair_loss,
)
from seqjepa.groups import Group

EMBED = 32  # E, numbers of an embedded action
DECORRELATE = 0.05  # weight of the covariance between features, where z is to hold as much as it can
Batch = Callable[[], ViewSequence]


def fast_convnet(side: int, dim: int) -> nn.Module:
    """Views of `side` pixels, a multiple of 8, to `dim` numbers: half the time of `small.small_convnet`, no less seen.

    Patches of four pixels first, so that most of the work is done on few places. Flattened, narrow and centred at its
    end for the reasons given there.
    """
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 4, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        ResidualBlock(32, 32, 1), ResidualBlock(32, 64, 2),
        nn.Flatten(), nn.Linear(64 * (side // 8) ** 2, dim, bias=False), nn.BatchNorm1d(dim, affine=False),
    ).to(memory_format=torch.channels_last)  # fmt: skip


class PairedSeqJEPA(SeqJEPA):
    """seq-JEPA whose observed views each predict another view of the sequence as well, alone, by the composed action.

    Every pair of views that is loaded is a pair to learn from: to say what any view looks like after any action, z has
    to hold the pose. The loss is the mean of both. How many places further the other view stands is drawn from torch's
    own generator, once a batch.
    """

    group: Group

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """As `SeqJEPA.forward`."""
        out = super().forward(views, actions, mask)
        loss, terms = pair_loss(self, out, views, actions, self.group, mask=mask)
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


def build(
    side: int, dim: int, action_dim: int, steps: int, *, with_actions: bool = True, encoder: nn.Module | None = None
) -> SeqJEPA:
    """The paper's model with four parts changed, each measured: pre-norm, no dropout, two maps that are deeper."""
    encoder = fast_convnet(side, dim) if encoder is None else encoder
    width = EMBED if with_actions else 0
    return SeqJEPA(
        encoder=encoder,
        embedder=ActionEmbedder(action_dim, EMBED, hidden_dim=64) if with_actions else NoActions(),
        aggregator=SequenceAggregator(dim + width, dropout=0.0, norm_first=True),
        predictor=ConditionedPredictor(dim + width, width, dim, 512, depth=2),
        target=EMATarget(encoder, CosineSchedule(0.98, 1.0, steps)),
    )


def with_pairs(model: SeqJEPA, group: Group, decorrelate: float = 0.0) -> PairedSeqJEPA:
    """The same parts, trained on pairs of views, too: more of a rotation enters z, no more of it without actions.

    `decorrelate` is the weight of the covariance between features of z. It lets in more still, for planning, but a
    model without actions gets its share of that.
    """
    loss = SeqJEPALoss(regularizer=VarianceCovariance(0.0, decorrelate)) if decorrelate else None
    paired = PairedSeqJEPA(model.encoder, model.embedder, model.aggregator, model.predictor, model.target, loss)
    paired.group = group
    return paired


def train_and_look(
    model: SeqJEPA, batch: Batch, steps: int, name: str, half: bool, at: Collection[int], look: Callable[[int], None]
) -> SeqJEPA:
    """`small.train`, and a look at the model in eval mode after the steps `at`, the last of them too."""
    done = 0

    def next_batch() -> ViewSequence:
        nonlocal done
        if done in at:
            model.eval()
            look(done)
            model.train()
        done += 1
        return batch()

    train(model, next_batch, steps, name, small_recipe(model, steps)._replace(half=half))
    if steps in at:
        look(steps)
    return model


@torch.no_grad()
def settled(model: SeqJEPA, batch: Batch) -> SeqJEPA:
    """An untrained network whose batch norms have seen the data: a fair level, since trained ones have."""
    model.train()
    for _ in range(20):
        views, actions, *_ = batch()
        model(views, actions)
    assert model.target is not None
    model.target.load_state_dict(EMATarget(model.encoder).state_dict())  # the same network, its statistics included
    return model.eval()


def bf16_is_faster(side: int, rows: int = 128) -> bool:
    """Whether bfloat16 saves a tenth of the encoder's time here: CPUs without the instructions take many times as long.

    Told by the clock, the best of three each: that a CPU claims the instructions does not say that it is faster.
    """
    encoder, views = fast_convnet(side, 16), torch.rand(rows, 3, side, side)
    best: dict[bool, float] = {}
    for cast in (False, True, False, True, False, True):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out: Tensor = encoder(views)
        out.float().square().mean().backward()
        best[cast] = min(time.perf_counter() - begun, best.get(cast, float("inf")))
    return best[True] < 0.9 * best[False]
