"""A run as a whole: what it holds does not grow, and what it does is determined."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa import CosineSchedule, EMATarget
from seqjepa.data import AugmentedViews, RenderedObjects, RotatedViews, SaccadeViews, ViewLoader
from seqjepa.evaluation import Monitor, OnlineProbe
from seqjepa.training import RunningStatistics, seed_step, weight_groups
from tests.builders import TinyEncoder, tiny_model


def steps(seed: int = 0) -> Iterator[Any]:
    """The model after each optimiser step of a whole loop: a loader, a sampler, a monitor, a probe."""
    torch.manual_seed(seed)
    encoder = TinyEncoder()
    model = tiny_model(action_dim=1, encoder=encoder, target=EMATarget(encoder, CosineSchedule(0.9, 1.0, 2000)))
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    loader = ViewLoader(list(zip(images, range(12), strict=True)), RotatedViews(num_views=3), batch_size=4, seed=seed)
    optimizer = torch.optim.AdamW(weight_groups(model, 1e-2), lr=1e-3)
    monitor, probe, statistics = Monitor(every=50), OnlineProbe(model.aggregator.dim, 12), RunningStatistics(model)
    step = 0
    while True:
        for batch in loader:
            seed_step(seed, step)
            statistics.keep()
            out = model(batch.views, batch.actions)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.update_target()
            assert batch.labels is not None
            probe.update(out.state, batch.labels)
            monitor(z=out.z, state=out.state, prediction=out.prediction, target=out.target)
            step += 1
            yield model


def held() -> tuple[int, int]:
    """Tensors alive, and the numbers in them."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return len(tensors), sum(tensor.numel() for tensor in tensors)


def test_a_thousand_steps_hold_no_more_than_a_hundred() -> None:
    run, counts = steps(), []
    for step in range(1, 1001):
        next(run)
        if step in (100, 1000):
            counts.append(held())
    assert counts[0] == counts[1]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch's own check: an operation that is not determined raises, and memory that is not written to is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_are_honoured_by_a_whole_loop() -> None:
    one, other = steps(), steps()
    for _ in range(3):
        weights = next(one).state_dict()
    for _ in range(3):
        again = next(other).state_dict()
    for name, value in weights.items():
        assert torch.equal(value, again[name]), name
        assert value.isfinite().all(), name


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_deterministic_algorithms_are_honoured_by_the_samplers(device: str) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    samplers = AugmentedViews(num_views=3, size=24), RotatedViews(num_views=3), SaccadeViews(num_views=3, fovea=12)
    for sampler in samplers:
        first, second = (sampler(images, generator=torch.Generator(device).manual_seed(1)).views for _ in range(2))
        assert torch.equal(first, second)
        assert first.isfinite().all()
    objects = RenderedObjects(4, size=16, device=device)
    first, second = (
        objects.sample(torch.arange(4), num_views=2, generator=torch.Generator().manual_seed(1)).views for _ in range(2)
    )
    assert torch.equal(first, second)
