"""SeqJEPA: the laws of the whole."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqjepa import (
    ActionEmbedder,
    ConditionedPredictor,
    CosineSchedule,
    EMATarget,
    NoActions,
    OnlineTarget,
    RawActions,
    SeqJEPA,
    SeqJEPALoss,
    SeqJEPAOutput,
    SequenceAggregator,
    SIGReg,
    StopGradientTarget,
    VarianceCovariance,
    ViewSequence,
)
from seqjepa.encoders import feature_width
from seqjepa.evaluation import extract
from seqjepa.functional import cosine_distance
from tests.builders import TinyEncoder, joint, randomise, sequence, tiny_model

small = st.integers(1, 4)


def eval_model(**parts: Any) -> SeqJEPA:
    return randomise(tiny_model(**parts)).double().eval()


def wide(batch: int = 4, observed: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    return sequence(batch, observed, seed=seed, dtype=torch.float64)


def assert_same_output(ours: SeqJEPAOutput, theirs: SeqJEPAOutput, **tolerance: Any) -> None:
    for name, mine, other in zip(ours._fields, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, msg=partial("{}: {}".format, name), **tolerance)


def test_the_readme_s_words_work() -> None:
    model = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=True)
    views, actions = torch.rand(8, 4, 3, 32, 32), torch.randn(8, 3, 4)
    out = model(views, actions)
    out.loss.backward()
    model.update_target()
    z = model.encode(views)
    state = model.aggregate(z[:, :3], model.embed(actions[:, :2]))
    nxt = model.predict(state, model.embed(actions)[:, 2])
    assert (z.shape, state.shape, nxt.shape) == ((8, 4, 512), (8, 640), (8, 512))


@given(st.integers(2, 4), small, small, st.sampled_from([torch.float32, torch.float64]))
def test_shapes_for_any_batch_length_and_dtype(b: int, t: int, a: int, dtype: torch.dtype) -> None:
    model = tiny_model(action_dim=a).to(dtype)
    views, actions = sequence(b, t, a, dtype=dtype)
    for batch in (b, b + 1):  # B and T may change from call to call
        out = model(*(x.repeat(2, *[1] * (x.ndim - 1))[:batch] for x in (views, actions)))
        shapes = [tuple(x.shape) for x in out[:5]]
        assert shapes == [(), (batch, 8), (batch, 8), (batch, 12), (batch, t, 8)]
        assert {x.dtype for x in out[:5]} == {dtype}
    assert list(out.terms) == ["distance"]
    assert tiny_model(action_dim=a).to(dtype)(*sequence(b, t + 1, a, dtype=dtype)).z.shape == (b, t + 1, 8)


def test_forward_is_the_paper_s_equations() -> None:
    model = eval_model()
    views, actions = wide()
    out = model(views, actions)
    z = torch.stack([model.encoder(views[:, t]) for t in range(3)], dim=1)
    e = torch.stack([model.embedder(actions[:, t : t + 1])[:, 0] for t in range(3)], dim=1)
    tokens = torch.cat([z, torch.cat([e[:, :2], torch.zeros(4, 1, 4).double()], dim=1)], dim=2)
    state = model.aggregator(tokens)
    prediction = model.predictor(state, e[:, 2])
    target = model.target.encoder(views[:, 3])
    expected = SeqJEPAOutput(
        cosine_distance(prediction, target).mean(), prediction, target, state, z,
        {"distance": cosine_distance(prediction, target).mean()},
    )  # fmt: skip
    assert_same_output(out, expected)


def test_the_embedder_is_called_once_for_all_actions() -> None:
    model = tiny_model().train()
    model(*sequence())
    assert model.embedder.normalization.num_batches_tracked == 1
    assert model.encoder.bn1.num_batches_tracked == 1
    assert model.target.encoder.bn1.num_batches_tracked == 1


@given(st.integers(2, 5), st.randoms(use_true_random=False))
def test_aggregate_ignores_the_order_of_view_action_pairs(t: int, random: Any) -> None:
    model = eval_model()
    z, e = torch.randn(3, t, 8).double(), torch.randn(3, t - 1, 4).double()
    order = random.sample(range(t - 1), t - 1)  # the last view, marked by its zero slot, stays where it is
    torch.testing.assert_close(model.aggregate(z[:, [*order, t - 1]], e[:, order]), model.aggregate(z, e))


def test_which_action_belongs_to_which_view_matters() -> None:
    model = eval_model()
    z, e = torch.randn(3, 3, 8).double(), torch.randn(3, 2, 4).double()
    assert (model.aggregate(z, e.flip(1)) - model.aggregate(z, e)).abs().max() > 1e-4


@given(small, st.integers(1, 3), st.integers(0, 2), st.integers(0, 2))
def test_padding_changes_nothing_before_or_after_a_sequence(b: int, t: int, front: int, back: int) -> None:
    model = eval_model(loss=SeqJEPALoss(regularizer=VarianceCovariance()))
    views, actions = wide(b + 1, t)
    junk_views, junk_actions = wide(b + 1, front + back, seed=1)
    padded_views = torch.cat([junk_views[:, :front], views, junk_views[:, front : front + back]], dim=1)
    padded_actions = torch.cat([junk_actions[:, :front], actions, junk_actions[:, front : front + back]], dim=1)
    mask = torch.tensor([False] * front + [True] * t + [False] * back).expand(b + 1, -1)
    out, padded = model(views, actions), model(padded_views, padded_actions, mask)
    assert_same_output(padded._replace(z=padded.z[:, front : front + t]), out)


def test_rows_of_several_lengths_equal_each_row_alone() -> None:
    model = eval_model()
    views, actions = wide(3, 4)
    mask = torch.tensor([[True, False, False, False], [True, True, True, False], [True] * 4])
    out = model(views, actions, mask)
    for row, length in enumerate((1, 3, 4)):
        alone = model(views[row : row + 1, : length + 1], actions[row : row + 1, :length])
        for name in ("prediction", "target", "state"):
            torch.testing.assert_close(getattr(out, name)[row], getattr(alone, name)[0])


def test_a_view_left_out_within_a_sequence_leaves_its_token_out() -> None:
    model = eval_model()
    views, actions = wide(2, 3)
    out = model(views, actions, torch.tensor([[True, False, True]]).expand(2, -1))
    z, e = model.encode(views[:, :3]), model.embed(actions)
    torch.testing.assert_close(out.state, model.aggregate(z[:, [0, 2]], e[:, :1]))


@given(st.integers(2, 4), small)
def test_in_eval_mode_a_row_never_depends_on_another(b: int, t: int) -> None:
    model = eval_model()
    views, actions = wide(b, t)
    whole, alone = model(views, actions), model(views[1:2], actions[1:2])
    for name in ("prediction", "target", "state", "z"):
        torch.testing.assert_close(getattr(whole, name)[1:2], getattr(alone, name))


@given(small)
def test_the_state_does_not_see_the_action_to_be_predicted(t: int) -> None:
    model = eval_model()
    views, actions = wide(4, t)
    changed = actions.clone()
    changed[:, -1] += 1
    before, after = model(views, actions), model(views, changed)
    assert torch.equal(before.state, after.state)
    assert torch.equal(before.z, after.z)
    assert (before.prediction - after.prediction).abs().max() > 1e-4


def test_the_last_view_reaches_the_target_alone() -> None:
    model = eval_model()
    views, actions = wide()
    changed = views.clone()
    changed[:, -1] += 1
    before, after = model(views, actions), model(changed, actions)
    assert torch.equal(before.prediction, after.prediction)
    assert (before.target - after.target).abs().max() > 1e-4


@given(small)
def test_without_actions_nothing_depends_on_them(t: int) -> None:
    model = eval_model(embedder=NoActions())
    views, actions = wide(4, t)
    assert torch.equal(model(views, actions).prediction, model(views, -actions).prediction)
    assert model(views, actions).state.shape == (4, 8)


@given(st.integers(1, 4), st.sampled_from(["ema", "stop-gradient", "regularised"]))
def test_every_online_parameter_learns_and_the_target_does_not(t: int, kind: str) -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder) if kind == "ema" else StopGradientTarget(encoder)
    loss = SeqJEPALoss(regularizer=VarianceCovariance()) if kind == "regularised" else None
    model = tiny_model(encoder=encoder, target=target, loss=loss)
    randomise(model)
    model(*sequence(6, t)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("target."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            # a bias before a batch norm, and the keys' bias, are analytically without effect
            if "bias" not in name:
                assert parameter.grad.abs().max() > 0, name
    assert not model(*sequence(6, t)).target.requires_grad


def test_the_predicted_view_takes_no_gradient() -> None:
    model = tiny_model(target=StopGradientTarget(encoder := TinyEncoder()), encoder=encoder)
    views, actions = sequence()
    views.requires_grad_()
    model(views, actions).loss.backward()
    assert views.grad is not None
    assert not views.grad[:, -1].any()
    assert views.grad[:, 0].any()


def test_update_target_moves_the_target_towards_the_encoder() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.encoder.conv1.weight.add_(1.0)
    before = model.target.encoder.conv1.weight.clone()
    model.update_target()
    torch.testing.assert_close(model.target.encoder.conv1.weight, before + 0.1)


def test_training_lowers_the_loss_and_repeats_with_a_seed() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = tiny_model(dropout=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            out = model(*sequence(16, 2, seed=5))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            model.update_target()
            losses.append(out.loss.item())
        runs.append(losses)
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.5 * runs[0][0]


@given(small)
def test_imagining_one_action_is_predicting(t: int) -> None:
    model = eval_model()
    views, actions = wide(3, t)
    out = model(views, actions)
    imagined = model.imagine(views[:, :-1], actions[:, :-1], actions[:, -1:])
    torch.testing.assert_close(imagined[:, 0], out.prediction)
    assert imagined.shape == (3, 1, 8)


@given(small, st.integers(1, 4))
def test_imagining_feeds_each_prediction_back_as_a_view(t: int, k: int) -> None:
    model = eval_model()
    views, actions = wide(3, t + k - 1)
    imagined = model.imagine(views[:, :t], actions[:, : t - 1], actions[:, t - 1 :])
    z, e = model.encode(views[:, :t]), model.embed(actions)
    for step in range(k):
        state = model.aggregate(z, e[:, : t - 1 + step])
        z = torch.cat([z, model.predict(state, e[:, t - 1 + step])[:, None]], dim=1)
        torch.testing.assert_close(imagined[:, step], z[:, -1])
    assert imagined.shape == (3, k, 8)


@pytest.mark.parametrize("observed", [1, 3])
def test_imagining_in_training_mode_moves_the_embedder_s_statistics_once_over_all_actions(observed: int) -> None:
    model = tiny_model(dropout=0.0).train()
    views, actions = sequence(observed=4)
    twin = copy.deepcopy(model)
    e = twin.embed(actions)
    imagined = model.imagine(views[:, :observed], actions[:, : observed - 1], actions[:, observed - 1 :])
    for name, buffer in model.embedder.named_buffers():
        assert buffer.isfinite().all(), name
        torch.testing.assert_close(buffer, dict(twin.embedder.named_buffers())[name])
    z = twin.encode(views[:, :observed])
    first = twin.predict(twin.aggregate(z, e[:, : observed - 1]), e[:, observed - 1])
    torch.testing.assert_close(imagined[:, 0], first)


def test_an_imagined_step_does_not_know_later_actions() -> None:
    model = eval_model()
    views, actions = wide(3, 4)
    changed = actions.clone()
    changed[:, 3] += 1
    first = [model.imagine(views[:, :2], a[:, :1], a[:, 1:])[:, :2] for a in (actions, changed)]
    assert torch.equal(*first)


# --- precision, layout, copies ---


def test_float32_and_float64_agree() -> None:
    model = tiny_model().eval()
    views, actions = sequence()
    single = model(views, actions)
    double = model.double()(views.double(), actions.double())
    for ours, theirs in zip(single[:5], double[:5], strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_trains_and_agrees() -> None:
    model = tiny_model(dropout=0.0)
    views, actions = sequence(16)
    exact = copy.deepcopy(model)(views, actions)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(views, actions)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, exact.loss, atol=3e-2, rtol=3e-2)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_model_in_bfloat16_trains_beside_a_float32_target() -> None:
    model = tiny_model().to(torch.bfloat16)
    views, actions = sequence(dtype=torch.bfloat16)
    out = model(views, actions)
    out.loss.backward()
    model.update_target()
    assert out.loss.dtype == torch.float32
    assert {p.dtype for p in model.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.target.parameters()} == {torch.float32}


def test_channels_last_changes_no_number() -> None:
    model = tiny_model().eval()
    views, actions = sequence()
    expected = model(views, actions)
    out = copy.deepcopy(model).to(memory_format=torch.channels_last)(views, actions)
    assert_same_output(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", [EMATarget, StopGradientTarget, OnlineTarget])
def test_a_deep_copy_lives_its_own_life(target: Any) -> None:
    encoder = TinyEncoder()
    model = tiny_model(encoder=encoder, target=target(encoder)).eval()
    twin = copy.deepcopy(model)
    views, actions = sequence()
    before = model(views, actions)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    twin.update_target()
    assert_same_output(model(views, actions), before)
    torch.testing.assert_close(twin(views, actions).z, twin.encode(views[:, :-1]))
    if target is not EMATarget:
        assert torch.equal(twin(views, actions).target, twin.encoder(views[:, -1]))


class NoHostSync(TorchDispatchMode):
    """Raise at any operation that reads a value back, as `.item()` and data-dependent shapes do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("buffers", ["own", "copy", "ema"])
def test_a_step_never_reads_a_value_back(masked: bool, buffers: Any) -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder, CosineSchedule(0.9, 1.0, 10), buffers=buffers)
    regularizer = VarianceCovariance() if buffers == "own" else SIGReg()
    model = tiny_model(encoder=encoder, target=target, loss=SeqJEPALoss(regularizer=regularizer))
    views, actions = sequence()
    mask = torch.ones(4, 3, dtype=torch.bool) if masked else None
    with NoHostSync():
        model(views, actions, mask).loss.backward()
        model.update_target()
        model.imagine(views[:, :2], actions[:, :1], actions[:, 1:])
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostSync():
        torch.ones(1).item()


@pytest.mark.parametrize("regularizer", [VarianceCovariance, SIGReg])
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_runs_on_a_device_without_values(masked: bool, regularizer: Any) -> None:
    """The meta device stands in for a GPU that must not be waited for: whatever needs a value fails there."""
    with torch.device("meta"):
        encoder = TinyEncoder()
        target = EMATarget(encoder, CosineSchedule(0.9, 1.0, 10))
        model = tiny_model(encoder=encoder, target=target, loss=SeqJEPALoss(regularizer=regularizer()))
        views, actions = torch.rand(4, 4, 3, 8, 8), torch.rand(4, 3, 3)
        mask = torch.ones(4, 3, dtype=torch.bool) if masked else None
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    out = model(views, actions, mask)
    out.loss.backward()
    optimizer.step()
    model.update_target()
    assert out.state.shape == (4, 12)
    assert model.imagine(views[:, :2], actions[:, :1], actions[:, 1:]).shape == (4, 2, 8)
    assert model.aggregator.attention(torch.rand(4, 3, 12, device="meta"), mask).shape == (4, 2, 2, 4, 4)
    assert "step=?" in repr(model.target)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("embedder", [ActionEmbedder(3, 4), NoActions(), RawActions(4)])
def test_a_half_precision_encoder_works_under_float32_heads(half: torch.dtype, embedder: nn.Module) -> None:
    """As torch.cat would: where half precision and float32 meet without autocast, float32 comes out."""
    model = randomise(tiny_model(embedder=embedder)).eval()
    views, actions = sequence()
    model.encoder.to(half)
    twin = copy.deepcopy(model).float()
    z = model.encode(views.to(half))
    state = model.aggregate(z, model.embed(actions)[:, :3])
    expected = twin.aggregate(z.float(), twin.embed(actions)[:, :3])
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, expected, atol=0, rtol=0)
    out = model.train()(views.to(half), actions)
    out.loss.backward()
    assert out.prediction.dtype == torch.float32
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_with_an_online_target_the_encoder_learns_from_both_sides() -> None:
    model = tiny_model(target=OnlineTarget(encoder := TinyEncoder()), encoder=encoder).eval()
    views, actions = sequence()
    views.requires_grad_()
    out = model(views, actions)
    assert torch.equal(out.target, model.encoder(views[:, -1]))
    expected = torch.autograd.grad(cosine_distance(out.prediction, out.target).mean(), list(encoder.parameters()))
    out = model(views, actions)
    out.loss.backward()
    torch.testing.assert_close([p.grad for p in encoder.parameters()], list(expected))
    assert views.grad is not None
    assert views.grad[:, -1].any()
    model.update_target()
    assert sum(name.startswith("target.") for name in model.state_dict()) == 0


@pytest.mark.parametrize("onlooker", ["target", "attention", "width", "evaluation"])
def test_under_autocast_a_pass_without_gradient_takes_no_gradient_from_the_next(onlooker: str) -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8))
    model = tiny_model(encoder=encoder, target=StopGradientTarget(encoder))
    views, actions = sequence()
    with torch.autocast("cpu", torch.bfloat16):
        if onlooker == "attention":
            model.aggregator.attention(torch.randn(4, 3, 12))
        elif onlooker == "width":
            feature_width(encoder, (3, 8, 8))
        elif onlooker == "evaluation":
            extract(model, ViewSequence(views, actions))
        out = model(views, actions)
    out.loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["aggregator.norm.bias"] or without == []


def test_distributed_data_parallel_wraps_the_model(tmp_path: Any) -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = tiny_model()
        parallel = nn.parallel.DistributedDataParallel(model)
        for seed in range(2):  # a second pass raises if a parameter was left without gradient in the first
            parallel(*sequence(seed=seed)).loss.backward()
            parallel.module.update_target()
        assert model.target.step == 2
        target = EMATarget(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)))
        target.update(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)))
        assert not any("module" in key for key in target.state_dict())
        plain = tiny_model()
        model.encoder = nn.parallel.DistributedDataParallel(torch.compile(model.encoder))
        model.load_state_dict(plain.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
        )
        other = tiny_model()
        other.load_state_dict(nn.parallel.DistributedDataParallel(model).state_dict())
        assert all(torch.equal(v, plain.state_dict()[k]) for k, v in other.state_dict().items())
    finally:
        dist.destroy_process_group()


# --- state dicts ---


def test_a_state_dict_round_trip_changes_no_bit() -> None:
    model, other = tiny_model(), randomise(tiny_model(), seed=5)
    model(*sequence()).loss.backward()
    model.update_target()
    other.load_state_dict(model.state_dict())
    assert other.target.step == 1
    assert_same_output(other.eval()(*sequence()), model.eval()(*sequence()), atol=0, rtol=0)


def same_values(ours: SeqJEPA, theirs: SeqJEPA) -> bool:
    values = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in values)


def with_compiled_parts(model: SeqJEPA) -> SeqJEPA:
    model.encoder = torch.compile(model.encoder)
    model.aggregator = torch.compile(model.aggregator)
    return model


def test_weights_pass_between_plain_and_wrapped_models_whatever_the_wrappers_add_to_their_names() -> None:
    def plain(seed: int) -> SeqJEPA:
        return randomise(tiny_model(), seed)

    source = plain(1)
    state = source.state_dict()
    spellings: list[dict[str, Any]] = [
        dict(state),
        with_compiled_parts(copy.deepcopy(source)).state_dict(),
        {f"module.{key}": value for key, value in state.items()},  # of a model in DistributedDataParallel
        {f"_orig_mod.{key}": value for key, value in state.items()},  # of torch.compile(model)
        {f"module._orig_mod.{key}": value for key, value in joint(state).items()},
        {key.replace("encoder.", "encoder.module.", 1): value for key, value in state.items()},
    ]
    for spelling in spellings:
        for model in (plain(2), with_compiled_parts(plain(2))):
            model.load_state_dict(spelling)
            assert same_values(model, source)
    whole: Any = torch.compile(plain(2))
    whole.load_state_dict(whole.state_dict())
    pair = nn.ModuleList([plain(2), with_compiled_parts(plain(3))])
    pair.load_state_dict(pair.state_dict())


def test_a_part_that_really_is_called_module_keeps_its_name() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.scale = TinyEncoder(), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.module(x)

    source, model = randomise(tiny_model(encoder=Wrapped()), 1), tiny_model(encoder=Wrapped())
    assert "encoder.module.conv1.weight" in source.state_dict()
    for state in (source.state_dict(), {f"module.{key}": value for key, value in source.state_dict().items()}):
        model.load_state_dict(tiny_model(encoder=Wrapped()).state_dict())
        model.load_state_dict(state)
        assert same_values(model, source)
    target = model.target
    target.update(model.encoder)
    assert "encoder.module.conv1.weight" in target.state_dict()


def test_torch_s_own_state_dict_functions_take_a_model_with_compiled_parts() -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    source, model = with_compiled_parts(randomise(tiny_model(), 1)), with_compiled_parts(tiny_model())
    state = get_model_state_dict(source)
    assert sorted(state) == sorted(tiny_model().state_dict())
    set_model_state_dict(model, state)
    assert same_values(model, source)


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_from_before_queries_had_a_projection_of_their_own_still_load(compiled: bool) -> None:
    source, model = randomise(tiny_model(), 1), tiny_model()
    old = joint(source.state_dict())
    assert "aggregator.layers.0.qkv.weight" in old
    (with_compiled_parts(model) if compiled else model).load_state_dict(old)
    assert same_values(model, source)
    part = SequenceAggregator(12, depth=2, heads=2)
    part.load_state_dict(joint(source.aggregator.state_dict()))
    assert all(torch.equal(v, source.aggregator.state_dict()[k]) for k, v in part.state_dict().items())
    assert "aggregator.layers.0.qkv.weight" in old  # the caller's own dictionary is left alone


def test_a_model_built_without_weights_takes_them_by_assignment() -> None:
    source = randomise(tiny_model(), 1)
    source.update_target()
    with torch.device("meta"):
        model = tiny_model()
    with pytest.raises(
        RuntimeError, match=r"nothing was loaded(.|\n)*load with assign=True, or call to_empty\(\) first"
    ):
        model.load_state_dict(source.state_dict())
    model.load_state_dict(source.state_dict(), assign=True)
    assert same_values(model, source)
    assert model.target.step == 1
    assert not any(p.requires_grad for p in model.target.parameters())
    assert all(p.requires_grad for p in model.encoder.parameters())
    assert_same_output(model.eval()(*sequence()), source.eval()(*sequence()), atol=0, rtol=0)
    model.train()(*sequence()).loss.backward()
    model.update_target()
    assert model.target.step == 2


@pytest.mark.parametrize("strict", [True, False])
def test_a_failed_load_leaves_the_model_untouched(strict: bool) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    bad = tiny_model().state_dict()
    bad["predictor.layers.0.weight"] = torch.zeros(2, 2)
    bad["target._extra_state"] = "three"
    if strict:
        del bad["aggregator.token"]
        bad["more"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"for another model; nothing was loaded(.|\n)*") as error:
        model.load_state_dict(bad, strict=strict)
    assert "predictor.layers.0.weight: (2, 2) given, (16, 16) needed" in str(error.value)
    assert "target._extra_state: str given, a tensor needed" in str(error.value)
    assert ("aggregator.token: missing" in str(error.value)) == strict
    assert ("more: unknown" in str(error.value)) == strict
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_partial_load_is_possible_when_asked_for() -> None:
    model, other = tiny_model(), tiny_model()
    part = {k: v for k, v in other.state_dict().items() if k.startswith("encoder.")}
    model.load_state_dict(part, strict=False)
    assert torch.equal(model.encoder.conv1.weight, other.encoder.conv1.weight)
    assert not torch.equal(model.predictor.layers[0].weight, other.predictor.layers[0].weight)


# --- building ---


def test_from_encoder_builds_the_paper_s_parts_around_any_encoder() -> None:
    encoder = TinyEncoder(12)
    model = SeqJEPA.from_encoder(encoder, action_dim=5, view_shape=(3, 8, 8), momentum=0.5)
    assert model.encoder is encoder
    assert isinstance(model.embedder, ActionEmbedder)
    assert (model.embedder.action_dim, model.embedder.embed_dim) == (5, 128)
    assert (model.aggregator.dim, model.aggregator.depth, model.aggregator.heads) == (140, 3, 4)
    assert (model.predictor.hidden_dim, model.predictor.dim) == (1024, 12)
    assert (model.target.momentum, model.target.buffer_mode) == (0.5, "own")
    assert model(*sequence(action_dim=5)).loss.isfinite()


def test_from_encoder_takes_other_parts() -> None:
    encoder = TinyEncoder(12)
    target, loss = StopGradientTarget(encoder), SeqJEPALoss(regularizer=VarianceCovariance())
    model = SeqJEPA.from_encoder(
        encoder, action_dim=3, view_shape=(3, 8, 8), embedder=NoActions(), target=target, loss=loss
    )
    assert model.aggregator.dim == 12
    assert model.target is target
    assert list(model(*sequence()).terms) == ["distance", "variance", "covariance"]


def test_from_timm_takes_its_options() -> None:
    loss = SeqJEPALoss()
    model = SeqJEPA.from_timm("resnet18", action_dim=2, in_chans=1, momentum=0.7, embedder=RawActions(4), loss=loss)
    assert model.loss is loss
    assert model.target.momentum == 0.7
    assert model.aggregator.dim == 516
    assert model(torch.rand(2, 3, 1, 32, 32), torch.randn(2, 2, 2)).loss.isfinite()
    assert SeqJEPA.from_timm("vit_tiny_patch16_224", action_dim=2, img_size=32).predictor.dim == 192
    assert SeqJEPA.from_timm("vit_tiny_patch16_224", action_dim=2, heads=8).aggregator.heads == 8
    assert SeqJEPA.from_timm("resnet18", action_dim=2, img_size=(32, 96)).predictor.dim == 512
    wide = SeqJEPA.from_timm("vit_tiny_patch16_224", action_dim=2, img_size=(32, 64)).eval()
    assert wide(torch.rand(1, 3, 3, 32, 64), torch.randn(1, 2, 2)).z.shape == (1, 2, 192)
    assert SeqJEPA.from_timm("resnet18", action_dim=2).target.momentum == 0.996


def test_any_trailing_shape_goes() -> None:
    model = SeqJEPA.from_encoder(nn.Linear(7, 8), action_dim=2, view_shape=(7,))
    assert model(torch.randn(4, 3, 7), torch.randn(4, 2, 2)).z.shape == (4, 2, 8)


# --- bad input ---


@pytest.mark.parametrize(("n", "m", "way_out"), [(3, 3, "Drop the last action or add a view"),
                                                 (4, 2, "Add an action or drop the last view")])  # fmt: skip
def test_views_and_actions_that_do_not_match_are_refused(n: int, m: int, way_out: str) -> None:
    views, actions = torch.rand(2, n, 3, 8, 8), torch.randn(2, m, 3)
    with pytest.raises(ValueError, match=rf"{n} views need {n - 1} actions, one per step; got {m}\. {way_out}"):
        tiny_model()(views, actions)
    with pytest.raises(ValueError, match=rf"{n} views need {n - 1} actions, one per step; got {m}\. {way_out}"):
        tiny_model().imagine(views, actions, actions)


def test_one_view_is_too_few_to_train_on() -> None:
    with pytest.raises(ValueError, match=r"Two views and one action are the least .* got 1 view"):
        tiny_model()(torch.rand(2, 1, 3, 8, 8), torch.randn(2, 0, 3))


def test_wrong_ranks_dtypes_and_batches_are_refused() -> None:
    model = tiny_model()
    views, actions = sequence()
    with pytest.raises(ValueError, match=r"views must have the axes \(B, T\+1, …\).*got \(4, 4\)"):
        model(views[:, :, 0, 0, 0], actions)
    with pytest.raises(ValueError, match=r"actions must have the axes \(B, T, A\); got shape \(4, 3\)"):
        model(views, actions[..., 0])
    with pytest.raises(ValueError, match=r"got 2\. .* Axis 1 of views counts them, \(B, T\+1, …\); got \(4, 4, 8, 8\)"):
        model(views[:, :, 0], actions[:, :2])
    with pytest.raises(ValueError, match=r"one batch size; got 4 and 3"):
        model(views, actions[:3])
    with pytest.raises(TypeError, match=r"views must be floating point; got torch\.uint8"):
        model((views * 255).byte(), actions)
    with pytest.raises(TypeError, match=r"actions must be floating point; got torch\.int64"):
        model(views, actions.long())
    with pytest.raises(
        TypeError, match=r"actions must have the dtype of the weights, torch\.float32; got torch\.float64"
    ):
        model(views, actions.double())
    with pytest.raises(TypeError, match=r"views must have the dtype of the weights"):
        model(views.double(), actions)
    with pytest.raises(TypeError, match=r"views must be a torch\.Tensor; got ndarray"):
        model(views.numpy(), actions)
    with pytest.raises(ValueError, match=r"actions must lie where the weights do"):
        model(views, actions.to("meta"))
    with pytest.raises(ValueError, match=r"views must lie where the weights do"):
        model(views.to("meta"), actions)
    with pytest.raises(ValueError, match=r"An action has 3 numbers here"):
        model(views, actions[..., :2])
    with pytest.raises(ValueError, match=r"shape \(4, 3\); got \(4, 4\)"):
        model(views, actions, torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask must be bool"):
        model(views, actions, torch.ones(4, 3))


def test_aggregate_refuses_the_action_that_leaves_the_last_view() -> None:
    model = tiny_model()
    z, e = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    with pytest.raises(
        ValueError, match=r"got z of shape \(2, 3, 8\) and e of shape \(2, 3, 4\)\. The action that leaves"
    ):
        model.aggregate(z, e)
    with pytest.raises(ValueError, match="3 views have 2 actions between them"):
        model.aggregate(z, e[:1, :2])
    with pytest.raises(ValueError, match=r"z must have the axes \(B, T, D\)"):
        model.aggregate(z[0], e)
    with pytest.raises(ValueError, match=r"e must have the axes \(B, T, E\)"):
        model.aggregate(z, e[0])


def test_imagine_refuses_a_future_without_actions_or_of_another_size() -> None:
    model = tiny_model()
    views, actions = sequence()
    for future in (actions[:, :0], actions[:2], actions[..., :2]):
        with pytest.raises(ValueError, match=r"future_actions must be \(B, K, A\) with K of at least 1"):
            model.imagine(views, actions, future)
    with pytest.raises(ValueError, match=r"future_actions must have the axes \(B, K, A\)"):
        model.imagine(views, actions, actions[:, 0])


def test_parts_that_do_not_fit_are_refused() -> None:
    encoder, embedder, aggregator = TinyEncoder(), ActionEmbedder(3, 4), SequenceAggregator(12, heads=2)
    with pytest.raises(ValueError, match=r"embedded actions 5 wide; the embedder makes them 4 wide.*action_dim=4"):
        SeqJEPA(encoder, embedder, aggregator, ConditionedPredictor(12, 5, 8))
    with pytest.raises(ValueError, match=r"states 11 wide; the aggregator makes them 12 wide.*state_dim=12"):
        SeqJEPA(encoder, embedder, aggregator, ConditionedPredictor(11, 4, 8))
    with pytest.raises(
        ValueError, match=r"\(9, what the predictor.*\(4\): 13 wide; the aggregator takes 12.*Aggregator\(13\)"
    ):
        SeqJEPA(encoder, embedder, aggregator, ConditionedPredictor(12, 4, 9))


def test_parts_of_the_user_s_own_answer_for_themselves() -> None:
    class Sum(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:  # a mask is handed over only where there is one
            return tokens.sum(1)

    class Masked(nn.Module):
        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return (tokens * mask[..., None]).sum(1)

    class Head(nn.Module):
        def forward(self, state: Tensor, e: Tensor) -> Tensor:
            return state[:, :8]

    model = SeqJEPA(TinyEncoder(), ActionEmbedder(3, 4), Sum(), Head())
    assert model(*sequence()).prediction.shape == (4, 8)
    model = SeqJEPA(TinyEncoder(), ActionEmbedder(3, 4), Sum(), ConditionedPredictor(12, 4, 8))
    assert model(*sequence()).prediction.shape == (4, 8)
    model = SeqJEPA(TinyEncoder(), ActionEmbedder(3, 4), Masked(), Head())
    assert model(*sequence(), torch.ones(4, 3, dtype=torch.bool)).prediction.shape == (4, 8)


@pytest.mark.parametrize(("width", "said"), [(None, "none"), (2.5, "2.5")])
def test_an_embedder_that_does_not_say_how_wide_it_is_is_refused(width: Any, said: str) -> None:
    embedder = nn.Identity()
    if width is not None:
        embedder.embed_dim = width
    with pytest.raises(TypeError, match=rf"by embed_dim, a whole number; Identity has {said}\. Set self.embed_dim"):
        SeqJEPA.from_encoder(TinyEncoder(), action_dim=2, view_shape=(3, 8, 8), embedder=embedder)


def test_an_encoder_of_feature_maps_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match=r"must map 1 views to vectors of shape \(1, D\); got \(1, 4, 6, 6\)"):
        SeqJEPA.from_encoder(nn.Conv2d(3, 4, 3), action_dim=2, view_shape=(3, 8, 8))


def test_absolute_parameters_are_recognised_by_their_number() -> None:
    with pytest.raises(
        ValueError, match=r"got 4\. .*Actions are relative: of absolute parameters, one a view, take the"
    ):
        tiny_model()(torch.rand(2, 4, 3, 8, 8), torch.randn(2, 4, 3))


def test_heads_are_the_way_out_where_four_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"dim=178 and heads=4"):
        SeqJEPA.from_encoder(nn.Linear(7, 50), action_dim=2, view_shape=(7,))
    assert SeqJEPA.from_encoder(nn.Linear(7, 50), action_dim=2, view_shape=(7,), heads=2).aggregator.heads == 2


def test_without_actions_their_dtype_and_device_do_not_matter() -> None:
    model = tiny_model(embedder=NoActions())
    views, actions = sequence()
    for other in (actions.double(), actions.to("meta")):
        assert model(views, other).prediction.dtype == torch.float32


def test_raw_actions_of_another_dtype_are_refused_by_their_name() -> None:
    views, actions = sequence()
    with pytest.raises(
        TypeError, match=r"e must have the dtype of .* got torch\.float64\. Convert with e\.to\(torch\."
    ):
        tiny_model(embedder=RawActions(4))(views, actions.double())


def test_a_stop_gradient_target_is_bound_to_the_model_s_encoder() -> None:
    model = tiny_model(target=StopGradientTarget(TinyEncoder())).eval()
    views, actions = sequence()
    assert torch.equal(model(views, actions).target, model.encoder(views[:, -1]))


def test_without_an_ema_statistics_move_for_the_target_first() -> None:
    encoder = TinyEncoder()
    model = tiny_model(encoder=encoder, target=StopGradientTarget(encoder))
    views, actions = sequence()
    expected: Any = copy.deepcopy(encoder)
    expected(views[:, -1])
    expected(views[:, :-1].flatten(0, 1))
    model(views, actions)
    torch.testing.assert_close(model.encoder.bn1.running_mean, expected.bn1.running_mean)
    torch.testing.assert_close(model.encoder.bn1.running_var, expected.bn1.running_var)


@pytest.mark.parametrize("spoil", [
    lambda w: w.long(), lambda w: w.to("meta"), lambda w: w.to_sparse(), lambda w: w.to(torch.complex64),
], ids=["integer", "meta", "sparse", "complex"])  # fmt: skip
def test_weights_of_another_kind_are_refused_before_anything_is_loaded(spoil: Any) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    bad = tiny_model().state_dict()
    bad["predictor.layers.3.weight"] = spoil(bad["predictor.layers.3.weight"])
    with pytest.raises(
        RuntimeError, match=r"nothing was loaded(.|\n)*predictor\.layers\.3\.weight: .* given, .* needed"
    ):
        model.load_state_dict(bad)
    bad["target._extra_state"] = torch.tensor(torch.nan)
    with pytest.raises(RuntimeError, match=r"target\._extra_state: torch\.float32 given, torch\.int64 needed"):
        model.load_state_dict(bad)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_checkpoint_is_answered_with_what_it_holds() -> None:
    with pytest.raises(RuntimeError, match=r"0 of 80 names are known here, 1 were given\.\n  model: unknown\n"):
        tiny_model().load_state_dict({"model": tiny_model().state_dict()})
