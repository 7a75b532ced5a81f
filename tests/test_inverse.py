"""The inverse model and its bottlenecks: their limits, and what slow references say."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqjepa import GaussianBottleneck, InverseModel, NoActions, VectorQuantizer
from seqjepa.groups import Rotation3D
from seqjepa.inverse import InverseOutput
from tests.builders import sequence, tiny_model

D = 5
sizes = st.integers(1, 4)
KINDS: dict[str, Any] = {
    "none": lambda: None,
    "gaussian": GaussianBottleneck,
    "codes": lambda: VectorQuantizer(codes=5, chunks=2),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, action_dim: int = 4, **sizes: int) -> InverseModel:
    return InverseModel(dim=D, action_dim=action_dim, bottleneck=KINDS[kind](), hidden_dim=7, **sizes).double()


def ends(b: int = 3, t: int = 2, d: int = D) -> tuple[Tensor, Tensor]:
    z = torch.randn(b, t + 1, d, dtype=torch.float64)
    return z[:, :-1], z[:, 1:]


def quantizer(codes: int, chunks: int, width: int, **options: float) -> Any:
    part = VectorQuantizer(codes, chunks, **options)
    assert part.build(chunks * width) == chunks * width
    return part.double()


@kinds
@given(b=sizes, t=st.integers(0, 3), half=sizes, training=st.booleans())
def test_every_step_has_an_action_of_a_numbers(kind: str, b: int, t: int, half: int, training: bool) -> None:
    inverse = built(kind, 2 * half).train(training)
    actions, loss, terms = inverse.infer(*ends(b, t))
    assert actions.shape == inverse(*ends(b, t)).shape == (b, t, 2 * half)
    assert loss.shape == ()
    assert loss.isfinite()
    assert actions.dtype == loss.dtype == torch.float64
    assert all(term.shape == () and not term.requires_grad for term in terms.values())


@kinds
def test_forward_gives_the_actions_that_infer_does(kind: str) -> None:
    inverse, (z, z_next) = built(kind), ends()
    torch.manual_seed(3)
    actions = inverse(z, z_next)
    torch.manual_seed(3)
    assert torch.equal(inverse.infer(z, z_next).actions, actions)


@kinds
@given(b=sizes, t=sizes)
def test_a_step_depends_on_its_own_two_views_alone(kind: str, b: int, t: int) -> None:
    inverse, (z, z_next) = built(kind).eval(), ends(b, t)
    together = inverse(z, z_next)
    for row in range(b):
        for step in range(t):
            alone = inverse(z[row : row + 1, step : step + 1], z_next[row : row + 1, step : step + 1])
            torch.testing.assert_close(alone[0, 0], together[row, step])


@kinds
def test_both_views_and_their_order_are_read(kind: str) -> None:
    inverse, (z, z_next) = built(kind).eval(), ends(32)
    there = inverse(z, z_next)
    for other in (inverse(z_next, z), inverse(z, z), inverse(z_next, z_next)):
        assert not torch.allclose(there, other)


def test_without_a_bottleneck_it_is_an_mlp_on_both_views() -> None:
    inverse: Any = built("none", depth=2)
    z, z_next = ends()
    hidden = torch.cat([z, z_next], dim=-1)
    layers = list(inverse.network.layers)
    assert [type(layer) for layer in layers] == [*[nn.Linear, nn.LayerNorm, nn.ReLU] * 2, nn.Linear]
    for layer in layers:
        hidden = layer(hidden)
    actions, loss, terms = inverse.infer(z, z_next)
    torch.testing.assert_close(actions, hidden)
    assert loss.item() == 0
    assert terms == {}


@pytest.mark.parametrize("kind", ["none", "gaussian"])
def test_actions_of_no_numbers_are_no_actions(kind: str) -> None:
    inverse = built(kind, 0)
    z, z_next = ends()
    actions, loss, terms = inverse.infer(z, z_next)
    assert torch.equal(actions, NoActions()(torch.randn(3, 2, 4, dtype=torch.float64)))
    assert not list(inverse.parameters())
    assert loss.item() == 0
    assert terms == {}
    model = tiny_model(embedder=NoActions()).eval()
    views, true = sequence(observed=2)
    inferred = inverse(torch.randn(len(views), 2, D), torch.randn(len(views), 2, D))
    assert torch.equal(model(views, inferred).prediction, model(views, true).prediction)


def test_without_noise_and_weight_the_gaussian_one_is_the_plain_inverse_model() -> None:
    plain: Any = built("none", 3)
    noisy: Any = InverseModel(D, 3, GaussianBottleneck(beta=0), hidden_dim=7).double()
    state = dict(noisy.network.state_dict())
    for name, value in plain.network.state_dict().items():
        if state[name].shape == value.shape:
            state[name] = value
        else:  # the last layer: the mean, then a log-variance far below 0
            state[name] = torch.cat([value, torch.zeros_like(value) - (80 if name.endswith("bias") else 0)])
    noisy.network.load_state_dict(state)
    z, z_next = ends()
    actions, loss, _ = noisy.train().infer(z, z_next)
    torch.testing.assert_close(actions, plain(z, z_next))
    assert loss.item() == 0
    gradients = [
        torch.autograd.grad(model(z, z_next).square().sum(), model.network.layers[0].weight)[0]
        for model in (noisy, plain)
    ]
    torch.testing.assert_close(*gradients)


@given(b=sizes, t=sizes, a=st.integers(0, 4), beta=st.floats(0, 3))
def test_the_kl_is_that_of_torch_s_distributions(b: int, t: int, a: int, beta: float) -> None:
    mean, log_variance = torch.randn(2, b, t, a, dtype=torch.float64)
    out = GaussianBottleneck(beta)(torch.cat([mean, log_variance], dim=-1))
    q, p = torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).sum(-1).mean()
    torch.testing.assert_close(out.terms["kl"], expected)
    torch.testing.assert_close(out.loss, beta * expected)


def test_noise_itself_costs_nothing() -> None:
    out = GaussianBottleneck()(torch.zeros(4, 3, 8))
    assert out.terms["kl"].item() == out.loss.item() == 0


def test_draws_have_the_mean_and_deviation_and_follow_torch_s_seed() -> None:
    bottleneck = GaussianBottleneck()
    raw = torch.cat([torch.full((20_000, 1, 2), 3.0), torch.full((20_000, 1, 2), 2 * math.log(0.5))], dim=-1)
    torch.manual_seed(0)
    drawn = bottleneck(raw).actions
    assert (drawn.mean((0, 1)) - 3).abs().max() < 0.02
    assert (drawn.std((0, 1)) - 0.5).abs().max() < 0.02
    assert abs(torch.corrcoef(drawn[:, 0].T)[0, 1]) < 0.03  # each number has a draw of its own
    assert not torch.equal(bottleneck(raw).actions, drawn)
    torch.manual_seed(0)
    assert torch.equal(bottleneck(raw).actions, drawn)


@kinds
def test_in_eval_mode_nothing_is_drawn(kind: str) -> None:
    inverse, (z, z_next) = built(kind).eval(), ends()
    before = torch.get_rng_state()
    first = inverse(z, z_next)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inverse(z, z_next), first)


def test_in_eval_mode_a_gaussian_action_is_its_mean() -> None:
    raw = torch.randn(3, 2, 8)
    assert torch.equal(GaussianBottleneck().eval()(raw).actions, raw[..., :4])


@given(b=sizes, t=sizes, codes=st.integers(1, 6), chunks=st.integers(1, 3), width=st.integers(1, 3))
def test_each_chunk_becomes_its_nearest_code(b: int, t: int, codes: int, chunks: int, width: int) -> None:
    part = quantizer(codes, chunks, width)
    raw = torch.randn(b, t, chunks * width, dtype=torch.float64)
    actions, _, terms = part(raw)
    squared, uses = [], [0] * codes
    for row in range(b):
        for step in range(t):
            for chunk in range(chunks):
                here = slice(chunk * width, (chunk + 1) * width)
                away = [float((raw[row, step, here] - code).square().sum()) for code in part.codebook.detach()]
                best = min(range(codes), key=away.__getitem__)
                assert torch.equal(actions[row, step, here], part.codebook[best])  # to the bit
                squared.append(away[best] / width)
                uses[best] += 1
    assert terms["commitment"].item() == pytest.approx(sum(squared) / len(squared))
    shares = [use / sum(uses) for use in uses if use]
    assert terms["perplexity"].item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_the_gradient_of_an_action_passes_through_to_what_was_quantised_and_not_to_the_codes() -> None:
    part = quantizer(codes=4, chunks=2, width=3)
    raw = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    above = torch.randn_like(raw)
    to_raw, to_codes = torch.autograd.grad((part(raw).actions * above).sum(), [raw, part.codebook], allow_unused=True)
    assert torch.equal(to_raw, above)
    assert to_codes is None


@given(commitment=st.floats(0, 2))
def test_codes_and_network_each_learn_from_their_half_of_the_loss(commitment: float) -> None:
    part = quantizer(codes=4, chunks=2, width=3, commitment=commitment)
    raw = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    actions, loss, _ = part(raw)
    difference = raw.detach() - actions.detach()
    torch.testing.assert_close(loss, (1 + commitment) * difference.square().mean())
    to_raw, to_codes = torch.autograd.grad(loss, [raw, part.codebook])
    torch.testing.assert_close(to_raw, commitment * 2 * difference / raw.numel())
    expected = torch.zeros_like(to_codes)
    for chunk, away in zip(actions.detach().reshape(-1, 3), difference.reshape(-1, 3), strict=True):
        index = next(i for i, code in enumerate(part.codebook) if torch.equal(code, chunk))
        expected[index] -= 2 * away / raw.numel()
    torch.testing.assert_close(to_codes, expected)


def test_perplexity_counts_the_codes_in_use() -> None:
    part = quantizer(codes=3, chunks=1, width=1)
    part.codebook.data = torch.tensor([[-1.0], [0.0], [1.0]]).double()
    for values, expected in (([0.1] * 6, 1), ([-1.2, 0.9] * 3, 2), ([-1.0, 0.0, 1.0] * 2, 3)):
        raw = torch.tensor(values).double().reshape(6, 1, 1)
        assert part(raw).terms["perplexity"].item() == pytest.approx(expected)


def test_most_codes_of_an_untrained_model_are_in_use() -> None:
    for dim in (16, 512):
        inverse = InverseModel(dim, 16, VectorQuantizer(codes=64, chunks=8))
        assert inverse.infer(torch.randn(256, 3, dim), torch.randn(256, 3, dim)).terms["perplexity"] > 32


@kinds
def test_steps_that_do_not_count_change_neither_loss_nor_gradient(kind: str) -> None:
    inverse = built(kind).eval()
    z, z_next = ends(4, 3)
    mask = torch.tensor([[True, True, True], [True, True, False], [False, True, True], [True, False, False]])
    losses, gradients, termss = [], [], []
    for padding in (0.0, 7.0, math.nan):
        left, right = (torch.where(mask[..., None], x, padding) for x in (z, z_next))
        actions, loss, terms = inverse.infer(left, right, mask)
        total = loss + actions[mask].square().mean()
        losses.append(total)
        gradients.append(torch.autograd.grad(total, list(inverse.parameters())))
        termss.append(terms)
    rows = [inverse.infer(z[i : i + 1, t : t + 1], z_next[i : i + 1, t : t + 1]) for i, t in mask.nonzero().tolist()]
    alone = sum(out.loss + out.actions.square().mean() for out in rows) / len(rows)
    for loss, gradient, terms in zip(losses, gradients, termss, strict=True):
        torch.testing.assert_close(loss, alone)
        for ours, first in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(ours, first)
        torch.testing.assert_close(terms, termss[0])


@kinds
def test_no_steps_cost_nothing(kind: str) -> None:
    inverse = built(kind)
    assert inverse.infer(*ends(2, 0)).loss.item() == 0
    assert inverse.infer(*ends(2, 2), torch.zeros(2, 2, dtype=torch.bool)).loss.item() == 0


@given(pairs=st.integers(0, 4), t=sizes, a=sizes)
def test_exchange_gives_each_row_its_neighbour_s_and_twice_nothing(pairs: int, t: int, a: int) -> None:
    actions = torch.randn(2 * pairs, t, a)
    swapped = InverseModel.exchange(actions)
    for i in range(pairs):
        assert torch.equal(swapped[2 * i], actions[2 * i + 1])
        assert torch.equal(swapped[2 * i + 1], actions[2 * i])
    assert torch.equal(InverseModel.exchange(swapped), actions)


def test_the_gradient_of_an_exchanged_action_reaches_the_neighbour() -> None:
    actions = torch.randn(4, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(InverseModel.exchange(actions)[2].sum(), actions)
    assert gradient[3].eq(1).all()
    assert gradient[:3].eq(0).all()


@pytest.mark.parametrize("kind", ["none", "gaussian", "codes"])
def test_a_model_learns_through_inferred_actions(kind: str) -> None:
    inverse = InverseModel(8, 4, KINDS[kind](), hidden_dim=16)
    model = tiny_model(action_dim=4)
    views, _ = sequence(observed=3)
    z = torch.cat([model.encode(views[:, :-1]), model.target(views[:, -1])[:, None]], dim=1)
    actions, loss, _ = inverse.infer(z[:, :-1], z[:, 1:])
    (model(views, actions).loss + loss).backward()
    for name, parameter in [*inverse.named_parameters(), *model.encoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_with_true_actions_it_is_a_regulariser_with_a_gradient_for_both_views() -> None:
    group = Rotation3D()
    inverse = built("none", group.local_dim)
    z, z_next = (x.requires_grad_() for x in ends(8))
    turns = Rotation3D.random(8, 2).double()
    nn.functional.mse_loss(inverse(z, z_next), group.log(turns)).backward()
    for end in (z, z_next):
        assert end.grad is not None
        assert (end.grad != 0).any(dim=2).all()


@kinds
def test_half_precision_infers_as_float32_does(kind: str) -> None:
    inverse = InverseModel(16, 4, KINDS[kind](), hidden_dim=32).eval()
    z, z_next = torch.randn(2, 6, 3, 16)
    single = inverse.infer(z, z_next)
    with torch.autocast("cpu", torch.bfloat16):
        half = inverse.infer(z, z_next)
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, single.loss, atol=0.05, rtol=0.05)
    low = inverse.bfloat16().infer(z.bfloat16(), z_next.bfloat16())
    assert (low.actions.dtype, low.loss.dtype) == (torch.bfloat16, torch.float32)


def test_codes_are_saved_and_loaded() -> None:
    first, second = built("codes"), built("codes")
    assert "bottleneck.codebook" in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*(e := ends())), second(*e))


def test_a_bottleneck_of_one_s_own_says_what_it_reads() -> None:
    class Sparse(nn.Module):
        def build(self, action_dim: int) -> int:
            return action_dim

        def forward(self, raw: Tensor, mask: Tensor | None = None) -> InverseOutput:
            return InverseOutput(raw, raw.abs().mean(), {"l1": raw.abs().mean().detach()})

    actions, loss, terms = InverseModel(D, 3, Sparse()).double().infer(*ends())
    torch.testing.assert_close(loss, actions.abs().mean())
    assert list(terms) == ["l1"]


def test_an_odd_batch_cannot_be_exchanged() -> None:
    with pytest.raises(ValueError, match=r"must be even; got actions of shape \(3, 2, 4\)\. Drop the last row"):
        InverseModel.exchange(torch.randn(3, 2, 4))
    with pytest.raises(ValueError, match=r"must be even; got actions of shape \(\)"):
        InverseModel.exchange(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"actions must be a torch\.Tensor; got list"):
        InverseModel.exchange([1.0, 2.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"action_dim": -1}, {"hidden_dim": 0}, {"depth": 0}])
def test_sizes_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"action_dim at least 0; got .*\b{name}={value}\b"):
        InverseModel(**{"dim": 4, "action_dim": 2, **wrong})
    assert InverseModel(1, 1, hidden_dim=1, depth=1)(torch.randn(1, 1, 1), torch.randn(1, 1, 1)).shape == (1, 1, 1)


@pytest.mark.parametrize(("codes", "chunks"), [(0, 1), (1, 0), (-2, 1)])
def test_no_codes_or_no_chunks_are_refused(codes: int, chunks: int) -> None:
    with pytest.raises(ValueError, match=rf"1 code and 1 chunk at least; got codes={codes} and chunks={chunks}"):
        VectorQuantizer(codes, chunks)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_weights_below_0_or_without_bounds_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"beta, the weight of the KL, must be at least 0 and finite; got"):
        GaussianBottleneck(weight)
    with pytest.raises(ValueError, match=r"commitment is a weight, at least 0 and finite; got"):
        VectorQuantizer(4, commitment=weight)


@pytest.mark.parametrize(("action_dim", "instead"), [(4, 6), (7, 9), (1, 3), (0, 3)])
def test_chunks_that_do_not_divide_an_action_are_refused(action_dim: int, instead: int) -> None:
    with pytest.raises(ValueError, match=rf"got {action_dim}\. Take action_dim={instead}\."):
        InverseModel(D, action_dim, VectorQuantizer(4, 3))
    assert InverseModel(D, instead, VectorQuantizer(4, 3)).action_dim == instead


def test_a_quantizer_is_built_for_one_width() -> None:
    shared = VectorQuantizer(4, 2)
    with pytest.raises(ValueError, match=r"which InverseModel\(\.\.\., bottleneck=…\) tells; got none"):
        shared(torch.randn(1, 1, 4))
    InverseModel(D, 4, shared)
    codes = shared.codebook
    InverseModel(D, 4, shared)  # two that share one codebook
    assert shared.codebook is codes
    with pytest.raises(ValueError, match=r"codes are 2 wide.*got action_dim=6, which wants 3.*VectorQuantizer\(4, 2\)"):
        InverseModel(D, 6, shared)


def test_other_shapes_dtypes_and_devices_are_refused() -> None:
    inverse = InverseModel(D, 3)
    z = torch.randn(2, 4, D)
    with pytest.raises(ValueError, match=r"z must have the axes \(B, T, D\); got shape \(2, 5\)"):
        inverse(z[:, 0], z)
    with pytest.raises(ValueError, match=r"z_next must have the axes \(B, T, D\); got shape \(2, 5\)"):
        inverse(z, z[:, 0])
    for left, right in ((z, z[:, 1:]), (z[:1], z), (z[..., :4], z[..., :4])):
        with pytest.raises(ValueError, match=r"\(B, T, 5\) both; got shapes .*take z\[:, :-1\] and z\[:, 1:\]"):
            inverse(left, right)
    with pytest.raises(TypeError, match=r"z_next must have the dtype of the weights, torch\.float32; got torch\.fl"):
        inverse(z, z.double())
    with pytest.raises(ValueError, match=r"z must lie where the weights do, on cpu; got meta"):
        inverse(z.to("meta"), z)
    with pytest.raises(ValueError, match=r"shape \(2, 4\); got \(2, 3\)"):
        inverse.infer(z, z, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask must be bool"):
        inverse.infer(z, z, torch.ones(2, 4))
