"""Target encoders: the moving average, its limits, and what it must survive."""

import copy
import math
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from seqjepa import CosineSchedule, EMATarget, OnlineTarget, SeqJEPA, StopGradientTarget
from tests.builders import TinyEncoder, randomise


def moved(encoder: nn.Module, seed: int = 1) -> nn.Module:
    """The encoder after training has moved it, statistics included."""
    return randomise(copy.deepcopy(encoder), seed)


@given(st.floats(0, 1), st.integers(0, 99))
def test_an_update_is_a_convex_step(momentum: float, seed: int) -> None:
    encoder = randomise(TinyEncoder()).double()
    target, online = EMATarget(encoder, momentum), moved(encoder, seed)
    target.update(online)
    for mine, before, theirs in zip(
        target.encoder.parameters(), encoder.parameters(), online.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, momentum * before + (1 - momentum) * theirs)


def test_momentum_1_stays_and_momentum_0_follows_exactly() -> None:
    encoder = randomise(TinyEncoder())
    online = moved(encoder)
    for momentum, expected in ((1.0, encoder), (0.0, online)):
        target = EMATarget(encoder, momentum)
        target.update(online)
        for mine, theirs in zip(target.encoder.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_the_schedule_is_followed_step_by_step() -> None:
    weight = nn.Linear(1, 1, bias=False)
    target = EMATarget(weight, CosineSchedule(0.5, 1.0, 4))
    expected, rates = weight.weight.item(), []
    for step in range(6):
        with torch.no_grad():
            weight.weight.fill_(step + 1.0)
        m = 1 - 0.5 * (1 + math.cos(math.pi * min(step, 4) / 4)) / 2
        expected = m * expected + (1 - m) * (step + 1.0)
        target.update(weight)
        rates.append(m)
        assert target.encoder.weight.item() == pytest.approx(expected, abs=1e-6)
        assert target.step == step + 1
    assert rates[-1] == 1.0


def test_a_resumed_run_continues_the_schedule_exactly() -> None:
    encoder, schedule = TinyEncoder(), CosineSchedule(0.9, 1.0, 10)
    whole = EMATarget(encoder, schedule)
    for seed in range(3):
        whole.update(moved(encoder, seed))
    resumed = EMATarget(TinyEncoder(), schedule)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.step == 3
    for seed in range(3, 6):
        whole.update(moved(encoder, seed))
        resumed.update(moved(encoder, seed))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_the_target_shares_no_storage_and_takes_no_gradient() -> None:
    encoder = TinyEncoder()
    encoder(torch.rand(2, 3, 8, 8)).sum().backward()
    target = EMATarget(encoder)
    theirs = {t.data_ptr() for t in [*encoder.parameters(), *encoder.buffers()]}
    assert not theirs & {t.data_ptr() for t in [*target.parameters(), *target.buffers()]}
    assert not any(p.requires_grad or p.grad is not None for p in target.parameters())
    out = target(torch.rand(2, 3, 8, 8, requires_grad=True))
    assert not out.requires_grad
    assert out.shape == (2, 8)
    assert all(p.requires_grad for p in encoder.parameters())


def test_an_update_leaves_the_encoder_alone() -> None:
    encoder = randomise(TinyEncoder())
    target, online = EMATarget(encoder, 0.3, buffers="ema"), moved(encoder)
    before = copy.deepcopy(online.state_dict())
    target.update(online)
    assert all(torch.equal(v, before[k]) for k, v in online.state_dict().items())


@pytest.mark.parametrize("buffers", ["own", "copy", "ema"])
def test_batch_norm_statistics_are_kept_copied_or_averaged(buffers: Any) -> None:
    encoder = randomise(TinyEncoder())
    target, online = EMATarget(encoder, 0.75, buffers=buffers), moved(encoder)
    online.bn1.num_batches_tracked.fill_(7)  # type: ignore[union-attr, operator]
    target.update(online)
    mix = {"own": 1.0, "copy": 0.0, "ema": 0.75}[buffers]
    expected = mix * encoder.bn1.running_var + (1 - mix) * online.bn1.running_var  # type: ignore[operator, union-attr]
    torch.testing.assert_close(target.encoder.bn1.running_var, expected)
    assert target.encoder.bn1.num_batches_tracked == (0 if buffers == "own" else 7)
    assert target.encoder.bn1.num_batches_tracked.dtype == torch.int64


def test_with_its_own_statistics_the_target_follows_the_mode_and_normalises_by_its_batch() -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder)
    views = torch.rand(6, 3, 8, 8)
    assert target.encoder.training
    torch.testing.assert_close(target(views), copy.deepcopy(encoder)(views))
    assert target.encoder.bn1.num_batches_tracked == 1
    target.eval()
    assert not target.encoder.training
    target(views)
    assert target.encoder.bn1.num_batches_tracked == 1
    assert target.train().encoder.training
    assert EMATarget(encoder.eval()).encoder.training is False


@pytest.mark.parametrize("buffers", ["copy", "ema"])
def test_with_the_encoder_s_statistics_the_target_is_always_in_eval_mode(buffers: Any) -> None:
    target = EMATarget(TinyEncoder(), buffers=buffers)
    assert not target.encoder.training
    target.train()
    assert not any(m.training for m in target.encoder.modules())
    target(torch.rand(2, 3, 8, 8))
    assert target.encoder.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_average_stays_in_float32_beside_a_half_precision_encoder(half: torch.dtype) -> None:
    encoder: Any = TinyEncoder()
    exact = EMATarget(encoder, 0.999)
    cast = copy.deepcopy(exact).to(half)
    assert all(p.dtype == torch.float32 for p in cast.parameters())
    assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), cast.parameters(), strict=True))
    short = copy.deepcopy(encoder).to(half)
    built = EMATarget(short, 0.999)
    assert all(p.dtype == torch.float32 for p in built.parameters())
    with torch.no_grad():
        for p in short.parameters():
            p.add_(0.125)
    start = built.encoder.conv2.weight.clone()
    for _ in range(10):
        built.update(short)
    expected = short.conv2.weight.float() + 0.999**10 * (start - short.conv2.weight.float())
    torch.testing.assert_close(built.encoder.conv2.weight, expected)
    assert (built.encoder.conv2.weight - start).abs().max() > 1e-4  # bfloat16 would have stalled


class CastsByItself(TinyEncoder):
    """A backbone in half precision among float32 parts: it converts what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.conv1.weight.dtype))


def test_a_backbone_that_casts_its_input_to_half_precision_has_a_target() -> None:
    encoder: Any = CastsByItself().bfloat16()
    target = EMATarget(encoder)
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    views = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(target(views).float(), encoder(views).float(), atol=3e-2, rtol=3e-2)
    model = SeqJEPA.from_encoder(encoder, action_dim=2, view_shape=(3, 8, 8))
    model(torch.rand(4, 3, 3, 8, 8), torch.randn(4, 2, 2)).loss.backward()
    assert encoder.conv1.weight.grad is not None
    whole: Any = EMATarget(CastsByItself())
    assert whole(views).dtype == torch.float32
    assert whole.bfloat16()(views).dtype == torch.bfloat16
    assert whole.float()(views).dtype == torch.float32  # back from half precision, nothing is cast any more


def test_half_precision_weights_that_are_assigned_are_averaged_in_float32() -> None:
    source, target = EMATarget(TinyEncoder()), EMATarget(TinyEncoder())
    half = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in source.state_dict().items()
    }
    target.load_state_dict(half, assign=True)
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    expected = [p.bfloat16().float() for p in source.parameters()]
    torch.testing.assert_close(list(target.parameters()), expected, rtol=0, atol=0)


def test_the_step_is_read_where_it_is_whatever_the_default_device() -> None:
    target = EMATarget(TinyEncoder())
    with torch.device("meta"):
        target.set_extra_state(torch.tensor(7, device="cpu"))
        assert target.step == 7
        target.set_extra_state(9)
        assert target.step == 9


def test_half_precision_views_meet_float32_weights() -> None:
    encoder = TinyEncoder().eval()
    target = EMATarget(encoder).bfloat16()
    views = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(target(views.bfloat16()).float(), encoder(views), atol=3e-2, rtol=3e-2)


def test_float64_is_kept() -> None:
    target = EMATarget(TinyEncoder()).double()
    assert target(torch.rand(2, 3, 8, 8).double()).dtype == torch.float64


def test_channels_last_survives_a_cast() -> None:
    target = EMATarget(TinyEncoder()).to(memory_format=torch.channels_last).to(torch.bfloat16)
    assert target.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert target.encoder.conv1.weight.dtype == torch.float32


def test_a_change_of_the_module_alone_leaves_the_encoder() -> None:
    target = EMATarget(TinyEncoder())
    target.to_empty(device="meta", recurse=False)
    assert target.encoder.conv1.weight.device.type == "cpu"


def test_it_survives_deepcopy() -> None:
    target = EMATarget(TinyEncoder(), CosineSchedule(0.5, 1.0, 10))
    online = moved(target.encoder)
    target.update(online)
    twin = copy.deepcopy(target)
    assert twin.step == 1
    target.update(online)
    twin.update(online)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), twin.parameters(), strict=True))
    assert not {p.data_ptr() for p in target.parameters()} & {p.data_ptr() for p in twin.parameters()}


def test_a_compiled_encoder_is_copied_plain_and_followed() -> None:
    encoder = TinyEncoder()
    compiled: Any = torch.compile(encoder)
    target = EMATarget(compiled, 0.5)
    assert not any("_orig_mod" in key for key in target.state_dict())
    before = target.encoder.conv1.weight.clone()
    with torch.no_grad():
        encoder.conv1.weight.add_(1)
    target.update(compiled)
    torch.testing.assert_close(target.encoder.conv1.weight, before + 0.5)


@pytest.mark.parametrize("before", [True, False])
def test_an_encoder_in_any_wrapper_is_copied_plain_and_followed(before: bool) -> None:
    def wrapped() -> nn.Module:
        compiled: Any = torch.compile(encoder[1], backend="eager")
        return nn.DataParallel(nn.Sequential(checkpoint_wrapper(encoder[0]), compiled))

    encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    target = EMATarget(wrapped() if before else encoder, momentum=0.0)
    assert [name for name, _ in target.encoder.named_parameters()] == [name for name, _ in encoder.named_parameters()]
    randomise(encoder, seed=1)
    for online in (encoder, wrapped()):
        target.update(online)
        for mine, theirs in zip(target.encoder.parameters(), encoder.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_each_weight_follows_its_own_whatever_the_order() -> None:
    class Pair(nn.Module):
        def __init__(self, first: str, second: str) -> None:
            super().__init__()
            for name in (first, second):
                setattr(self, name, nn.Linear(3, 3))

    encoder, other = Pair("a", "b"), Pair("b", "a")
    target = EMATarget(encoder, momentum=0.0, buffers="copy")
    target.update(other)
    assert torch.equal(target.encoder.a.weight, other.a.weight)  # type: ignore[arg-type, union-attr]
    assert torch.equal(target.encoder.b.weight, other.b.weight)  # type: ignore[arg-type, union-attr]
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(
        ValueError, match=r"parameters .* differ .* in name: c\.weight is new, c\.bias is new, a\.weight is"
    ):
        target.update(Pair("c", "b"))
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_weight_that_two_modules_share_moves_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = self.a

    encoder = Tied()
    target = EMATarget(encoder, momentum=0.5)
    before = encoder.a.weight.detach().clone()
    with torch.no_grad():
        encoder.a.weight.add_(1.0)
    target.update(encoder)
    torch.testing.assert_close(target.encoder.a.weight, before + 0.5)


def test_weights_that_are_no_floating_point_numbers_are_copied() -> None:
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Parameter(torch.tensor([1, 2, 3]), requires_grad=False)
            self.keep = nn.Parameter(torch.tensor([True, False]), requires_grad=False)
            self.wave = nn.Parameter(torch.tensor([1.0 + 2.0j]))

    encoder: Any = Codes()
    target = EMATarget(encoder, momentum=0.75)
    with torch.no_grad():
        encoder.codes.fill_(7)
        encoder.keep.fill_(True)
        encoder.wave.fill_(5.0 + 6.0j)
    target.update(encoder)
    assert target.encoder.codes.tolist() == [7, 7, 7]
    assert target.encoder.keep.tolist() == [True, True]
    torch.testing.assert_close(target.encoder.wave.detach(), torch.tensor([2.0 + 3.0j]))


class Recording(nn.Module):
    """An encoder that keeps what it computed, in several places, and looks into itself by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 4)
        self.last: Any = None
        self.kept: dict[str, list[Tensor]] = {}
        self.body.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept = {"body": [output]}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.head(self.body(x)).relu()
        return self.last + self.kept["body"][0].mean()


def test_an_encoder_that_was_used_before_is_copied_with_what_is_its_own() -> None:
    encoder = Recording()
    x = torch.rand(2, 8)
    encoder(x).sum().backward()
    target = EMATarget(encoder)
    assert torch.equal(target(x), encoder(x))
    assert target.encoder.kept["body"][0] is not encoder.kept["body"][0]  # the copy's hook writes to the copy
    assert target.encoder.last is not encoder.last
    assert not target.encoder.last.requires_grad
    assert encoder.last.requires_grad


@pytest.mark.parametrize("registration", [
    "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook",
])  # fmt: skip
def test_a_hook_of_somebody_outside_stays_with_the_encoder(registration: str) -> None:
    class Probe:
        """Cannot be copied, and must not be called by the target."""

        def __init__(self) -> None:
            self.calls, self.lock = 0, threading.Lock()

        def look(self, *_: Any) -> None:
            self.calls += 1

    encoder, probe, seen = TinyEncoder(), Probe(), []
    getattr(encoder.conv2, registration)(probe.look)
    getattr(encoder.conv3, registration)(lambda *_: seen.append(1))
    target = EMATarget(encoder)
    target(torch.rand(2, 3, 8, 8))
    assert (probe.calls, seen) == (0, [])
    encoder(torch.rand(2, 3, 8, 8)).sum().backward()
    assert (probe.calls, seen) == (1, [1])


@pytest.mark.parametrize("change", [
    lambda m: nn.utils.prune.random_unstructured(m, "weight", 0.5),
    lambda m: nn.utils.weight_norm(m),  # the older form, by a hook
    lambda m: nn.utils.spectral_norm(m),
    lambda m: nn.utils.parametrizations.weight_norm(m),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_computes_a_weight_comes_along(change: Any) -> None:
    layer = change(nn.Linear(8, 4)).eval()
    layer(torch.rand(2, 8)).sum().backward()
    target = EMATarget(layer, momentum=0.0, buffers="copy")
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2).add_(0.5)
    target.update(layer)
    x = torch.rand(3, 8)
    torch.testing.assert_close(target(x), layer(x).detach())


def test_an_encoder_that_cannot_be_copied_or_is_not_made_yet_is_refused() -> None:
    class Locked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.lock = threading.Lock()

    with pytest.raises(TypeError, match=r"Locked cannot be copied: .*lock.*Keep what cannot be copied out of"):
        EMATarget(Locked())
    with pytest.raises(ValueError, match=r"lazy modules that have not made their weights yet\. Encode one batch first"):
        EMATarget(nn.LazyLinear(3))


@pytest.mark.parametrize("momentum", [0.9, CosineSchedule(0.9, 1.0, 20)])
def test_a_compiled_step_is_compiled_once_not_at_each_update(momentum: Any) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    encoder = TinyEncoder()
    target, eager = EMATarget(encoder, momentum), EMATarget(encoder, momentum)
    update = torch.compile(target.update, backend=backend, fullgraph=True)
    for seed in range(12):
        update(moved(encoder, seed))
        eager.update(moved(encoder, seed))
    assert len(graphs) == 1
    assert target.step == eager.step == 12
    for mine, theirs in zip(target.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)  # torch 2.6 rounds the two differently


def test_a_schedule_gives_a_tensor_the_same_numbers() -> None:
    encoder = TinyEncoder()
    schedule = CosineSchedule(0.5, 1.0, 4)
    by_tensor, by_number = EMATarget(encoder, schedule), EMATarget(encoder, lambda step: schedule(step))
    for seed in range(6):
        by_tensor.update(moved(encoder, seed))
        by_number.update(moved(encoder, seed))
    for a, b in zip(by_tensor.parameters(), by_number.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_the_step_can_be_set() -> None:
    target = EMATarget(nn.Linear(1, 1), CosineSchedule(0.0, 1.0, 4))
    target.step = 4
    assert target.step == 4
    before = target.encoder.weight.clone()
    target.update(nn.Linear(1, 1))
    assert torch.equal(target.encoder.weight, before)


def test_it_prints_what_it_does() -> None:
    assert "momentum=0.9, buffers='ema', step=0" in repr(EMATarget(nn.Linear(1, 1), 0.9, buffers="ema"))


def test_the_default_momentum_is_the_paper_s() -> None:
    assert EMATarget(nn.Linear(1, 1)).momentum == 0.996
    assert EMATarget(nn.Linear(1, 1)).buffer_mode == "own"


def test_the_stop_gradient_target_is_the_encoder_without_gradient() -> None:
    encoder = TinyEncoder()
    target = StopGradientTarget(encoder)
    views = torch.rand(4, 3, 8, 8)
    out = target(views)
    assert not out.requires_grad
    torch.testing.assert_close(out, encoder(views))
    assert encoder.bn1.num_batches_tracked == 2
    assert not target.state_dict()
    assert not list(target.modules())[1:]
    other = TinyEncoder()
    target.update(other)
    torch.testing.assert_close(target(views), other(views))


def test_the_online_target_is_the_encoder_with_its_gradient() -> None:
    encoder = TinyEncoder()
    target = OnlineTarget(encoder)
    views = torch.rand(4, 3, 8, 8)
    weights = list(encoder.parameters())
    mixed = torch.randn(4, 8)
    got = torch.autograd.grad((target(views) * mixed).sum(), weights)
    expected = torch.autograd.grad((encoder(views) * mixed).sum(), weights)
    torch.testing.assert_close(got, expected)
    assert encoder.bn1.num_batches_tracked == 2
    assert not target.state_dict()
    assert not list(target.modules())[1:]
    before = [weight.clone() for weight in weights]
    target.update(other := TinyEncoder())
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    torch.testing.assert_close(target(views), other(views))


# --- bad input ---


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_momentum_outside_0_1_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=rf"momentum must be in \[0, 1\], or a schedule of the step; got {momentum}"):
        EMATarget(nn.Linear(1, 1), momentum)
    target = EMATarget(nn.Linear(1, 1), lambda step: momentum if step else 1.0)
    target.update(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\]; the schedule gave {momentum} at step 1"):
        target.update(nn.Linear(1, 1))
    assert target.step == 1


@pytest.mark.parametrize("schedule", [CosineSchedule(0.9, 1.1, 10), CosineSchedule(-0.1, 1.0, 10)])
def test_a_schedule_that_leaves_0_1_is_refused_at_once(schedule: CosineSchedule) -> None:
    with pytest.raises(
        ValueError, match=r"momentum must be in \[0, 1\], or a schedule of the step; got CosineSchedule"
    ):
        EMATarget(nn.Linear(1, 1), schedule)


def test_unknown_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="buffers must be 'own', 'copy' or 'ema'; got 'average'"):
        EMATarget(nn.Linear(1, 1), buffers="average")  # type: ignore[arg-type]


def test_an_encoder_of_another_make_is_refused_before_anything_moves() -> None:
    encoder = TinyEncoder(8)
    target = EMATarget(encoder, 0.5, buffers="copy")
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(
        ValueError, match=r"the parameters of the one given differ in number or shape \(9 here, 9 there\)"
    ):
        target.update(TinyEncoder(16))
    with pytest.raises(ValueError, match=r"differ in number or shape \(9 here, 2 there\).*Build a new EMATarget"):
        target.update(nn.Linear(1, 1))
    other = TinyEncoder(8)
    other.bn1.register_buffer("more", torch.zeros(1))
    with pytest.raises(ValueError, match="the buffers of the one given differ"):
        target.update(moved(other))
    with pytest.raises(ValueError, match="must lie on one device; got cpu and meta"):
        target.update(moved(encoder).to("meta"))
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_an_encoder_that_returns_feature_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must map 2 views to vectors of shape \(2, D\); got \(2, 4, 6, 6\)"):
        EMATarget(nn.Conv2d(3, 4, 3))(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("buffers", ["own", "ema"])
def test_a_target_of_a_half_precision_encoder_works_in_float32(buffers: Any) -> None:
    encoder: Any = TinyEncoder().bfloat16()
    target = EMATarget(encoder, 0.99, buffers=buffers)
    assert {t.dtype for t in target.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert target(torch.rand(4, 3, 8, 8).bfloat16()).isfinite().all()
    encoder.bn1.running_var.fill_(2.0)
    for _ in range(20):
        target.update(encoder)
    expected = 2.0 - 0.99**20 if buffers == "ema" else target.encoder.bn1.running_var
    torch.testing.assert_close(target.encoder.bn1.running_var, torch.as_tensor(expected).expand(64))


def test_lower_precision_after_float64_ends_in_float32() -> None:
    target = EMATarget(TinyEncoder()).double().bfloat16()
    assert {p.dtype for p in target.parameters()} == {torch.float32}


def test_only_statistics_are_averaged_and_other_buffers_copied() -> None:
    encoder: Any = TinyEncoder()
    encoder.register_buffer("attend", torch.tensor([0.0, -torch.inf]))
    target, online = EMATarget(encoder, 0.5, buffers="ema"), copy.deepcopy(encoder)
    target.update(online)
    assert torch.equal(target.encoder.attend, online.attend)


def test_compiled_children_are_copied_plain_too() -> None:
    compiled: Any = torch.compile(nn.Linear(2, 2))
    encoder: Any = nn.Sequential(compiled, nn.Linear(2, 2))
    target = EMATarget(encoder, 0.0)
    assert list(target.state_dict()) == [
        "_extra_state", "encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias",
    ]  # fmt: skip
    with torch.no_grad():
        encoder[0].weight.add_(1)
    target.update(encoder)
    assert torch.equal(target.encoder[0].weight, encoder[0].weight)


def test_submodules_keep_the_modes_they_were_copied_with() -> None:
    encoder = TinyEncoder()
    encoder.bn1.eval()
    target = EMATarget(encoder)
    assert target.training
    assert target.encoder.training
    assert not target.encoder.bn1.training


def test_weights_that_are_tied_after_the_copy_are_followed_under_each_name() -> None:
    encoder = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    target = EMATarget(encoder, 0.5)
    before = [target.encoder[i].weight.clone() for i in (0, 1)]
    encoder[1].weight = encoder[0].weight
    target.update(encoder)
    for i in (0, 1):
        torch.testing.assert_close(target.encoder[i].weight, (before[i] + encoder[0].weight).detach() / 2)
