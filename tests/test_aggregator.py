"""The aggregator, against PyTorch's own transformer and the laws it must keep."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqjepa import SequenceAggregator
from seqjepa.aggregator import SinusoidalPositions
from tests.builders import joint, randomise


def reference(aggregator: SequenceAggregator) -> nn.TransformerEncoder:
    """torch.nn.TransformerEncoder with the same weights: an independent implementation."""
    layer = nn.TransformerEncoderLayer(
        aggregator.dim, aggregator.heads, aggregator.mlp_ratio * aggregator.dim, aggregator.dropout,
        batch_first=True, norm_first=aggregator.norm_first, dtype=aggregator.token.dtype,
    )  # fmt: skip
    stack = nn.TransformerEncoder(
        layer, aggregator.depth, norm=nn.LayerNorm(aggregator.dim), enable_nested_tensor=False
    )
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias",
             "out": "self_attn.out_proj", "mlp.0": "linear1", "mlp.3": "linear2"}  # fmt: skip
    state = {}
    for key, value in joint(aggregator.state_dict()).items():
        for ours, theirs in names.items():
            key = key.replace("." + ours, "." + theirs)
        if key != "token":
            state[key] = value
    stack.load_state_dict(state)
    return stack.to(aggregator.token.dtype).train(aggregator.training)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))


@given(shapes, st.sampled_from([(4, 1), (6, 3), (8, 4)]), st.integers(1, 3), st.booleans(), st.integers(1, 3),
       st.booleans())  # fmt: skip
def test_it_equals_pytorch_s_transformer_read_at_the_first_token(
    shape: tuple[int, int], width: tuple[int, int], depth: int, norm_first: bool, ratio: int, masked: bool
) -> None:
    (b, t), (dim, heads) = shape, width
    aggregator = SequenceAggregator(dim, heads=heads, depth=depth, mlp_ratio=ratio, norm_first=norm_first)
    randomise(aggregator).double().eval()
    tokens = torch.randn(b, t, dim, dtype=torch.float64)
    mask = torch.rand(b, t) < 0.6 if masked else None
    sequence = torch.cat([aggregator.token.expand(b, 1, dim), tokens], dim=1)
    padding = None if mask is None else torch.cat([torch.zeros(b, 1, dtype=torch.bool), ~mask], dim=1)
    expected = reference(aggregator)(sequence, src_key_padding_mask=padding)[:, 0]
    torch.testing.assert_close(aggregator(tokens, mask), expected)


def test_gradients_equal_pytorch_s() -> None:
    aggregator = randomise(SequenceAggregator(8, dropout=0.0)).double()
    stack = reference(aggregator)
    tokens = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 8, dtype=torch.float64)
    (aggregator(tokens) * weights).sum().backward()
    ours, tokens.grad = tokens.grad, None
    token = aggregator.token.detach().clone().requires_grad_()
    (stack(torch.cat([token.expand(3, 1, 8), tokens], dim=1))[:, 0] * weights).sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(ours, tokens.grad)
    torch.testing.assert_close(aggregator.token.grad, token.grad)
    theirs = dict(stack.named_parameters())
    ours = joint({name: p.grad for name, p in aggregator.named_parameters() if p.grad is not None})
    for layer in (0, 2):
        expected = theirs[f"layers.{layer}.self_attn.in_proj_weight"].grad
        torch.testing.assert_close(ours[f"layers.{layer}.qkv.weight"], expected)
    torch.testing.assert_close(aggregator.layers[2].mlp[0].weight.grad, theirs["layers.2.linear1.weight"].grad)


def test_the_defaults_are_the_paper_s() -> None:
    aggregator: Any = SequenceAggregator(640)
    assert (aggregator.depth, aggregator.heads, aggregator.mlp_ratio, aggregator.dropout) == (3, 4, 4, 0.1)
    assert not aggregator.norm_first
    assert aggregator.positions is None
    assert torch.equal(aggregator.token, torch.zeros(1, 1, 640))
    assert {k: tuple(v.shape) for k, v in aggregator.layers[0].named_parameters() if "weight" in k} == {
        "q.weight": (640, 640), "kv.weight": (1280, 640), "out.weight": (640, 640),
        "norm1.weight": (640,), "norm2.weight": (640,), "mlp.0.weight": (2560, 640), "mlp.3.weight": (640, 2560),
    }  # fmt: skip
    assert [m.p for m in aggregator.modules() if isinstance(m, nn.Dropout)] == [0.1] * 6
    assert not aggregator.layers[0].q.bias.any()
    assert not aggregator.layers[0].kv.bias.any()
    assert not aggregator.layers[0].out.bias.any()
    bound = math.sqrt(6 / (4 * 640))  # Xavier over the packed matrix, as nn.MultiheadAttention starts
    for name in ("q", "kv"):
        first, second = (getattr(aggregator.layers[i], name).weight for i in (0, 1))
        assert 0.95 * bound < first.abs().max() <= bound
        assert not torch.equal(first, second)


@given(shapes, st.randoms(use_true_random=False), st.booleans())
def test_without_positions_the_order_of_tokens_changes_nothing(
    shape: tuple[int, int], random, norm_first: bool
) -> None:
    b, t = shape
    aggregator = randomise(SequenceAggregator(8, norm_first=norm_first)).double().eval()
    tokens = torch.randn(b, t, 8, dtype=torch.float64)
    order = random.sample(range(t), t)
    torch.testing.assert_close(aggregator(tokens[:, order]), aggregator(tokens))


@pytest.mark.parametrize("positions", [SinusoidalPositions(8), nn.Embedding(16, 8)])
def test_with_positions_the_order_matters(positions: nn.Module) -> None:
    aggregator = randomise(SequenceAggregator(8, positions=positions)).eval()
    tokens = torch.randn(2, 3, 8)
    assert (aggregator(tokens) - aggregator(tokens.flip(1))).abs().max() > 1e-3


def test_positions_are_added_to_the_tokens_and_not_to_agg() -> None:
    positions = nn.Embedding(5, 8)
    aggregator = randomise(SequenceAggregator(8, positions=positions)).eval()
    tokens = torch.randn(2, 3, 8)
    moved = aggregator(tokens)
    aggregator.positions = None
    torch.testing.assert_close(moved, aggregator(tokens + positions.weight[:3]))


@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.booleans(), max_size=4), st.booleans(), st.booleans())
def test_padding_changes_nothing_wherever_it_stands_and_whatever_it_holds(
    b: int, t: int, padding: list[bool], positions: bool, norm_first: bool
) -> None:
    part = SinusoidalPositions(8) if positions else None
    aggregator = randomise(SequenceAggregator(8, positions=part, norm_first=norm_first)).double().eval()
    tokens = torch.randn(b, t, 8, dtype=torch.float64)
    front, back = padding.count(True), padding.count(False)
    junk = torch.full((b, 1, 8), torch.nan, dtype=torch.float64)
    padded = torch.cat([junk.expand(b, front, 8), tokens, junk.expand(b, back, 8)], dim=1)
    mask = torch.tensor([False] * front + [True] * t + [False] * back).expand(b, -1)
    torch.testing.assert_close(aggregator(padded, mask), aggregator(tokens))


def test_padding_inside_a_sequence_is_skipped_row_by_row() -> None:
    aggregator = randomise(SequenceAggregator(8, positions=nn.Embedding(9, 8))).double().eval()
    tokens = torch.randn(2, 4, 8, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True], [True, True, True, False]])
    rows = [aggregator(tokens[i : i + 1, mask[i]]) for i in range(2)]
    torch.testing.assert_close(aggregator(tokens, mask), torch.cat(rows))


def test_nan_in_the_padding_reaches_no_gradient() -> None:
    aggregator = SequenceAggregator(8)
    tokens = torch.randn(2, 3, 8)
    tokens[:, 2] = torch.nan
    tokens.requires_grad_()
    aggregator(tokens, torch.tensor([[True, True, False]]).expand(2, 3)).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[:, 2], torch.zeros(2, 8))
    assert all(p.grad.isfinite().all() for p in aggregator.parameters() if p.grad is not None)


def test_in_eval_mode_a_row_depends_on_itself_alone() -> None:
    aggregator = SequenceAggregator(8).eval()
    tokens = torch.randn(4, 3, 8)
    torch.testing.assert_close(aggregator(tokens)[2:3], aggregator(tokens[2:3]))


def test_float32_and_float64_agree() -> None:
    aggregator = SequenceAggregator(16).eval()
    tokens = torch.randn(4, 3, 16)
    torch.testing.assert_close(aggregator(tokens).double(), aggregator.double()(tokens.double()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm_first", [False, True])
def test_dropout_acts_in_training_only_and_at_all_four_places(
    norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional: Any = torch.nn.functional
    places: list[Any] = []
    attend, drop = functional.scaled_dot_product_attention, functional.dropout

    def spy_attend(q: Tensor, *args: Any, dropout_p: float, **kwargs: Any) -> Tensor:
        places.append(("attention", tuple(q.shape), dropout_p))
        return attend(q, *args, dropout_p=dropout_p, **kwargs)

    def spy_drop(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        places.append(("output", tuple(x.shape), p if training else 0.0))
        return drop(x, p, training, inplace)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy_attend)
    monkeypatch.setattr(functional, "dropout", spy_drop)
    aggregator = SequenceAggregator(8, heads=2, dropout=0.25, depth=2, norm_first=norm_first)
    for p in (0.25, 0.0):
        aggregator.train(p > 0)(torch.randn(5, 3, 8))
        assert places == [
            place
            for n in (4, 1)  # the last layer computes [AGG] alone
            for place in [
                ("attention", (5, 2, n, 4), p), ("output", (5, n, 8), p), ("output", (5, n, 32), p),
                ("output", (5, n, 8), p),
            ]
        ]  # fmt: skip
        places.clear()


@given(shapes, st.booleans(), st.booleans())
def test_attention_rows_sum_to_one_and_skip_padding(shape: tuple[int, int], masked: bool, norm_first: bool) -> None:
    b, t = shape
    aggregator = randomise(SequenceAggregator(8, heads=2, norm_first=norm_first)).eval()
    mask = torch.rand(b, t) < 0.5 if masked else None
    weights = aggregator.attention(torch.randn(b, t, 8), mask)
    assert weights.shape == (b, 3, 2, 1 + t, 1 + t)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(-1), torch.ones(b, 3, 2, 1 + t))
    if mask is not None:
        assert not weights.movedim(4, 1)[:, 1:][~mask].any()
        assert (weights.movedim(4, 1)[:, 1:][mask] > 0).all()


@pytest.mark.parametrize("norm_first", [False, True])
def test_attention_is_what_the_forward_pass_attends_with(norm_first: bool) -> None:
    aggregator = randomise(SequenceAggregator(8, heads=2, depth=2, norm_first=norm_first)).double().eval()
    tokens = torch.randn(3, 4, 8, dtype=torch.float64)
    stack = reference(aggregator)
    x = torch.cat([aggregator.token.expand(3, 1, 8), tokens], dim=1)
    for index, layer in enumerate(stack.layers):
        seen = layer.norm1(x) if norm_first else x
        _, expected = layer.self_attn(seen, seen, seen, average_attn_weights=False)
        torch.testing.assert_close(aggregator.attention(tokens)[:, index], expected)
        x = layer(x)


@given(st.integers(1, 5).map(lambda n: 2 * n), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_sinusoidal_positions_are_sines_then_cosines(dim: int, indices: list[int]) -> None:
    got = SinusoidalPositions(dim)(torch.tensor(indices))
    for row, index in zip(got.tolist(), indices, strict=True):
        angles = [index / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-4)
    assert got.dtype == torch.float32


def test_positions_have_the_wavelengths_of_the_source() -> None:
    angle = 10_000 / 10_000 ** (2 / 4)
    expected = [math.sin(1e4), math.sin(angle), math.cos(1e4), math.cos(angle)]
    assert SinusoidalPositions(4)(torch.tensor(10_000)).tolist() == pytest.approx(expected, abs=1e-4)


def test_positions_are_float32_whatever_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert SinusoidalPositions(4)(torch.arange(3)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_and_other_devices_need_no_code_of_their_own(masked: bool) -> None:
    for dtype, device in ((torch.bfloat16, "cpu"), (torch.float32, "meta")):
        aggregator = SequenceAggregator(8, positions=SinusoidalPositions(8)).to(device, dtype)
        mask = torch.ones(2, 3, dtype=torch.bool, device=device) if masked else None
        state = aggregator(torch.randn(2, 3, 8, dtype=dtype, device=device), mask)
        assert (state.shape, state.dtype, state.device.type) == ((2, 8), dtype, device)


def test_attention_is_without_dropout_and_leaves_the_modes_alone() -> None:
    aggregator = SequenceAggregator(8, dropout=0.5)
    aggregator.norm.eval()
    tokens = torch.randn(2, 3, 8)
    assert torch.equal(aggregator.attention(tokens), aggregator.attention(tokens))
    assert aggregator.training
    assert aggregator.layers.training
    assert not aggregator.norm.training


# --- bad input ---


def test_an_mlp_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mlp_ratio is the MLP's width over dim, a whole number from 1; got 0"):
        SequenceAggregator(8, mlp_ratio=0)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dim=640 and heads=3\. Head counts up to 16 that divide 640: 1, 2, 4, 5, 8, 10, 16\."
    ):
        SequenceAggregator(640, heads=3)
    with pytest.raises(ValueError, match=r"split evenly into heads; got dim=8 and heads=0"):
        SequenceAggregator(8, heads=0)
    with pytest.raises(ValueError, match=r"Head counts up to 16 that divide 34: 1, 2\."):
        SequenceAggregator(34, heads=3)
    with pytest.raises(ValueError, match=r"dim is the width of a token, at least 1; got 0\."):
        SequenceAggregator(0)
    assert SequenceAggregator(1, heads=1)(torch.randn(2, 3, 1)).shape == (2, 1)


def test_a_stack_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is the number of layers, at least 1; got 0"):
        SequenceAggregator(8, depth=0)


@pytest.mark.parametrize("dim", [0, 1, 7])
def test_odd_positions_are_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=rf"dim must be even, at least 2; got {dim}"):
        SinusoidalPositions(dim)


class Called(nn.Module):
    """A layer in the place of a linear one, such as LoRA's: it can only be called."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.low = nn.Linear(linear.in_features, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.low(x)


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_projection_is_called_so_that_another_layer_can_take_its_place(norm_first: bool) -> None:
    aggregator: Any = SequenceAggregator(8, depth=2, norm_first=norm_first, dropout=0.0)
    names = [name for name, module in aggregator.named_modules() if isinstance(module, nn.Linear)]
    assert len(names) == 2 * 5
    called: set[str] = set()
    for name in names:
        parent, _, leaf = name.rpartition(".")
        aggregator.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        setattr(aggregator.get_submodule(parent), leaf, Called(aggregator.get_submodule(name)))
    aggregator(torch.randn(3, 4, 8)).square().sum().backward()
    assert called == set(names)
    for name in names:
        gradient = aggregator.get_submodule(f"{name}.low").weight.grad
        assert gradient is not None, name
        assert gradient.any(), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_torch_s_tools_for_linear_layers_work_on_it() -> None:
    plain = randomise(SequenceAggregator(8, depth=1)).eval()
    tokens = torch.randn(3, 4, 8)
    normed = copy.deepcopy(plain)
    for linear in [m for m in normed.modules() if isinstance(m, nn.Linear)]:
        nn.utils.parametrizations.weight_norm(linear)
    torch.testing.assert_close(normed(tokens), plain(tokens))
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, dtype=torch.qint8)
    torch.testing.assert_close(quantised(tokens), plain(tokens), atol=0.2, rtol=0.2)


@pytest.mark.parametrize("positions", [SinusoidalPositions(8), nn.Embedding(4, 8)])
def test_positions_for_every_view_are_taken(positions: nn.Module) -> None:
    aggregator = SequenceAggregator(8, positions=positions)
    assert aggregator(torch.randn(2, 4, 8)).shape == (2, 8)
    mask = torch.tensor([[False, False, True, True, True, True], [True, True, False, False, False, False]])
    assert aggregator(torch.randn(2, 6, 8), mask).shape == (2, 8)  # padding needs no position


def test_more_views_than_positions_are_refused_by_name() -> None:
    aggregator = SequenceAggregator(8, positions=nn.Embedding(4, 8))
    message = r"needs a position; Embedding has too few for 5 views .*positions=nn\.Embedding\(5, 8\)"
    with pytest.raises(ValueError, match=message):
        aggregator(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match=message):
        aggregator(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):  # where no value can be read, either
        copy.deepcopy(aggregator).to("meta")(torch.randn(2, 5, 8, device="meta"))
    with pytest.raises(ValueError, match=r"added to the tokens, 8 wide; Embedding makes them 1 wide"):
        SequenceAggregator(8, positions=nn.Embedding(4, 1))(torch.randn(2, 3, 8))


@pytest.mark.parametrize(("lower", "higher"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_tokens_of_lower_precision_are_promoted_to_the_weights(lower: torch.dtype, higher: torch.dtype) -> None:
    aggregator = randomise(SequenceAggregator(8)).to(higher).eval()
    tokens = torch.randn(2, 3, 8).to(lower)
    assert torch.equal(aggregator(tokens), aggregator(tokens.to(higher)))


def test_wrong_tokens_are_refused() -> None:
    aggregator = SequenceAggregator(8)
    with pytest.raises(ValueError, match=r"tokens must have the axes \(B, T, S\); got shape \(2, 8\)"):
        aggregator(torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"\(2, 3, 9\), 9 wide\. A token is an encoder output .*: dim = D \+ E\.$"):
        aggregator(torch.randn(2, 3, 9))
    with pytest.raises(
        TypeError, match=r"tokens must have the dtype of the weights, torch\.float32; got torch\.float64"
    ):
        aggregator(torch.randn(2, 3, 8).double())
    with pytest.raises(ValueError, match=r"tokens must lie where the weights do, on cpu; got meta"):
        aggregator(torch.randn(2, 3, 8, device="meta"))


def test_wrong_masks_are_refused() -> None:
    aggregator, tokens = SequenceAggregator(8), torch.randn(2, 3, 8)
    with pytest.raises(TypeError, match=r"mask must be bool, True where a view counts; got torch\.float32"):
        aggregator(tokens, torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"mask must be a torch\.Tensor; got list"):
        aggregator(tokens, [[True]])
    with pytest.raises(ValueError, match=r"one entry per observed view, shape \(2, 3\); got \(2, 4\)"):
        aggregator(tokens, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must lie on cpu, where the views do; got meta"):
        aggregator(tokens, torch.ones(2, 3, dtype=torch.bool, device="meta"))
