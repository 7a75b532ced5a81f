"""The online probe: learns beside a run, and the run does not notice."""

import contextlib
import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqjepa.evaluation import OnlineProbe, linear_probe
from tests.builders import sequence, tiny_model


def labelled(n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=g)
    return 3 + torch.randn(n, 8, generator=g) + 2 * torch.eye(3, 8)[y], y


def test_it_reaches_the_accuracy_of_the_linear_probe() -> None:
    probe = OnlineProbe(8, 3)
    for seed in range(150):
        probe.update(*labelled(64, seed))
    train, test = labelled(4000, 1000), labelled(4000, 1001)
    best = linear_probe(*train, *test, l2=1e-4).accuracy
    assert probe.score(*test).item() == pytest.approx(best, abs=0.02)
    assert probe.accuracy == pytest.approx(best, abs=0.05)
    assert probe.step == 150


def test_a_batch_is_classified_before_it_is_learnt() -> None:
    probe = OnlineProbe(8, 3, lr=1.0)
    x, y = torch.zeros(12, 8), torch.full((12,), 2)
    assert probe.update(x, y) == 0  # zero weights answer 0, though one step is enough to learn it
    assert probe.update(x, y) == 1
    assert probe.accuracy == pytest.approx(1 / (1 + probe.memory))


def test_the_running_accuracy_is_a_weighted_mean_and_nan_before_it_begins() -> None:
    probe = OnlineProbe(8, 3, memory=0.5)
    assert math.isnan(probe.accuracy)
    seen = [probe.update(*labelled(32, seed)).item() for seed in range(4)]
    weights = [0.125, 0.25, 0.5, 1.0]
    assert probe.accuracy == pytest.approx(sum(w * a for w, a in zip(weights, seen, strict=True)) / sum(weights))


def test_the_run_is_the_same_bit_by_bit_with_it_and_without() -> None:
    def run(attach: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = tiny_model()
        labels = torch.arange(4) % 2
        if attach:
            probe = OnlineProbe(12, 2)
            probe.attach(model, features=lambda out: out.state, labels=lambda: labels)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for seed in range(3):
            model(*sequence(seed=seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.update_target()
        assert not attach or probe.step == 3
        return model.state_dict()

    with_probe, without = run(True), run(False)
    assert with_probe.keys() == without.keys()
    assert all(torch.equal(with_probe[name], without[name]) for name in without if "extra" not in name)


def test_it_learns_in_training_only_and_until_it_is_removed() -> None:
    model, labels = tiny_model(), torch.arange(4) % 2
    probe = OnlineProbe(8, 2)
    handle = probe.attach(model, features=lambda out: out.z[:, 0], labels=lambda: labels)
    model(*sequence())
    model.eval()
    model(*sequence())
    assert probe.step == 1
    model.train()
    handle.remove()
    model(*sequence())
    assert probe.step == 1


def test_it_sits_on_a_compiled_model_and_under_autocast() -> None:
    model, labels = tiny_model(), torch.arange(4) % 2
    probe = OnlineProbe(12, 2)
    probe.attach(model, features=lambda out: out.state, labels=lambda: labels)
    model.compile(backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        model(*sequence()).loss.backward()
    assert probe.step == 1
    weights = list(probe.network.parameters())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in weights)
    with torch.inference_mode():
        probe.update(torch.randn(4, 12), labels)
    probe.update(torch.randn(4, 12), labels)
    assert probe.step == 3


def test_scoring_changes_nothing() -> None:
    probe = OnlineProbe(8, 3)
    probe.update(*labelled())
    before = copy.deepcopy(probe.network.state_dict())
    assert 0 <= probe.score(*labelled(seed=1)) <= 1
    assert all(torch.equal(before[name], value) for name, value in probe.network.state_dict().items())
    assert probe.step == 1


def test_a_resumed_probe_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    whole = OnlineProbe(8, 3)
    for seed in range(3):
        whole.update(*labelled(seed=seed))
    torch.save(whole.state_dict(), tmp_path / "probe.pt")
    resumed = OnlineProbe(8, 3)
    resumed.load_state_dict(torch.load(tmp_path / "probe.pt", weights_only=True))
    for probe in (whole, resumed):
        probe.update(*labelled(seed=9))
    assert resumed.accuracy == whole.accuracy
    assert resumed.step == whole.step == 4
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30])
@pytest.mark.parametrize("rows", [1, 63, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_are_not_finite_end_nothing(value: float, rows: int, dtype: torch.dtype) -> None:
    probe, clean = OnlineProbe(8, 3, memory=0.9), OnlineProbe(8, 3, memory=0.9)
    for seed in range(80):
        features, labels = labelled(64, seed)
        if seed == 40:
            before = probe.accuracy
            features = features.to(dtype).clone()
            features[:rows] = value
            got = probe.update(features, labels)
            assert math.isnan(got.item()) == (rows == 64)
            if rows == 64:
                assert probe.accuracy == pytest.approx(before)
        else:
            probe.update(features, labels)
            clean.update(features, labels)
    assert all(bool(value.isfinite().all()) for value in probe.network.state_dict().values())
    assert probe.accuracy == pytest.approx(clean.accuracy, abs=0.03)
    assert probe.step == 80


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_held_out_rows_that_are_not_finite_count_in_no_accuracy(value: float) -> None:
    probe = OnlineProbe(8, 3)
    for seed in range(40):
        probe.update(*labelled(64, seed))
    features, labels = labelled(64, seed=99)
    expected = probe.score(features[16:], labels[16:])
    features[:16] = value
    assert torch.equal(probe.score(features, labels), expected)
    assert math.isnan(probe.score(features[:16], labels[:16]).item())


def test_a_checkpoint_of_before_still_loads() -> None:
    probe, other = OnlineProbe(8, 3), OnlineProbe(8, 3)
    probe.update(*labelled())
    other.load_state_dict(probe.state_dict() | {"weight": 1.0})
    assert other.accuracy == probe.accuracy


def test_the_defaults_of_torch_change_nothing(torch_defaults: Any) -> None:
    found = []
    for block in (contextlib.nullcontext, torch_defaults):
        features, labels = labelled()
        with block():
            probe = OnlineProbe(8, 3)
            probe.update(features, labels)
            found.append(probe.network.state_dict()["1.weight"])
            other = OnlineProbe(8, 3)
            other.load_state_dict(probe.state_dict())
        saved = other.state_dict()
        assert saved["running"].dtype == saved["weight"].dtype == torch.float32
        assert other.accuracy == probe.accuracy
    assert torch.equal(*found)
    assert found[1].dtype == torch.float32


def test_it_draws_nothing_and_prints_shortly() -> None:
    before = torch.get_rng_state()
    probe = OnlineProbe(8, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(probe) == "OnlineProbe(dim=8, num_classes=3, step=0)"
    assert not any(isinstance(p, nn.Parameter) and p.any() for p in probe.network.parameters())


def test_wrong_input_is_refused() -> None:
    x, y = labelled(8)
    with pytest.raises(ValueError, match=r"features and two classes at least; got dim=8, num_classes=1"):
        OnlineProbe(8, 1)
    with pytest.raises(ValueError, match=r"features and two classes at least; got dim=0"):
        OnlineProbe(0, 2)
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1"):
        OnlineProbe(8, 2, memory=1)
    probe = OnlineProbe(8, 3)
    with pytest.raises(ValueError, match=r"features \(N, 8\) and labels \(N\); got \(8, 7\) and \(8,\)"):
        probe.update(x[:, 1:], y)
    with pytest.raises(ValueError, match=r"got \(8, 8\) and \(7,\)"):
        probe.update(x, y[1:])
    with pytest.raises(ValueError, match=r"features must have the axes \(N, D\); got shape \(8, 8, 1\)"):
        probe.update(x[..., None], y)
    with pytest.raises(TypeError, match=r"labels must be integers; got torch.float32"):
        probe.update(x, y.float())
    with pytest.raises(ValueError, match=r"two rows at least; got 1"):
        probe.update(x[:1], y[:1])
    with pytest.raises(ValueError, match=r"lies on cpu; got features on meta\. Build it with device='meta'"):
        probe.update(x.to("meta"), y)
    assert probe.step == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision_are_learnt_from_in_float32(dtype: torch.dtype) -> None:
    probe, single = OnlineProbe(8, 3), OnlineProbe(8, 3)
    for seed in range(3):
        features, labels = labelled(32, seed)
        probe.update(features.to(dtype), labels)
        single.update(features.to(dtype).float(), labels)
    for a, b in zip(probe.network.state_dict().values(), single.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(probe.score(features.to(dtype), labels), single.score(features.to(dtype).float(), labels))
