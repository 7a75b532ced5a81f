"""The paper's settings, as its table has them."""

import pytest
import torch
from torch import nn

from seqjepa import CosineSchedule, NoActions
from seqjepa.presets import PRESETS, get_preset


@pytest.mark.parametrize(("name", "action_dim", "observed", "size", "stem", "epochs"), [
    ("3diebench-rotation", 4, 3, 128, False, 1000),
    ("3diebench-rotation-colour", 6, 4, 128, False, 1000),
    ("augmentations-32", 9, 3, 32, True, 2000),
    ("augmentations-64", 9, 3, 64, False, 2000),
    ("saccades-32", 2, 4, 32, True, 2000),
])  # fmt: skip
def test_each_preset_has_the_paper_s_numbers(
    name: str, action_dim: int, observed: int, size: int, stem: bool, epochs: int
) -> None:
    p = get_preset(name)
    assert (p.action_dim, p.observed_views, p.image_size, p.cifar_stem, p.epochs) == (
        action_dim, observed, size, stem, epochs,
    )  # fmt: skip
    assert (p.batch_size, p.learning_rate, p.warmup_learning_rate, p.warmup_epochs) == (512, 4e-4, 1e-5, 20)
    assert (p.weight_decay, p.momentum) == (1e-3, 0.996)
    model = p.model(steps_per_epoch=10)
    assert isinstance(model.encoder.maxpool, nn.Identity) == stem
    assert model.target.momentum == CosineSchedule(0.996, 1.0, 10 * epochs)
    assert (model.embedder.action_dim, model.embedder.embed_dim, model.embedder.norm) == (action_dim, 128, "batch")
    assert (model.aggregator.dim, model.aggregator.depth, model.aggregator.heads) == (640, 3, 4)
    assert model.predictor.hidden_dim == 1024
    out = model(torch.rand(2, observed + 1, 3, 32, 32), torch.randn(2, observed, action_dim))
    assert out.state.shape == (2, 640)


def test_all_presets_are_tested() -> None:
    assert len(PRESETS) == 5


def test_the_ablation_is_an_embedder() -> None:
    assert get_preset("saccades-32").model(1, embedder=NoActions()).aggregator.dim == 512


def test_the_optimizer_holds_every_learning_parameter_and_no_other() -> None:
    preset = get_preset("saccades-32")
    model = preset.model(steps_per_epoch=2)
    optimizer = preset.optimizer(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("target.")}
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(4e-4, 1e-3)}


def test_the_learning_rate_climbs_for_20_epochs_and_falls_to_the_end() -> None:
    preset = get_preset("3diebench-rotation")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=preset.learning_rate)
    scheduler = preset.scheduler(optimizer, steps_per_epoch=1)
    rates = []
    for _ in range(1001):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx((1e-5 + 4e-4) / 2)
    assert max(rates) == rates[20] == pytest.approx(4e-4)
    assert rates[510] == pytest.approx((1e-5 + 4e-4) / 2)
    assert rates[1000] == pytest.approx(1e-5)


def test_unknown_presets_are_answered_with_the_names() -> None:
    with pytest.raises(
        ValueError, match=r"There is no preset 'imagenet'\. The presets are: 3diebench-rotation, .*saccades-32"
    ):
        get_preset("imagenet")
