"""The embedders of actions."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seqjepa import ActionEmbedder, NoActions, RawActions

sizes = st.integers(1, 6)


@given(sizes, st.integers(0, 6), sizes, sizes, st.sampled_from(["batch", "layer", "rms", None]),
       st.sampled_from([None, 5]), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))  # fmt: skip
def test_shapes_and_dtypes(b: int, t: int, a: int, e: int, norm, hidden, dtype) -> None:
    embedder = ActionEmbedder(a, e, norm=norm, hidden_dim=hidden).to(dtype).eval()
    out = embedder(torch.randn(b, t, a).to(dtype))
    assert out.shape == (b, t, e)
    assert out.dtype == dtype


def test_the_default_is_the_paper_s_linear_map_and_batch_norm_over_all_actions() -> None:
    embedder: Any = ActionEmbedder(4)
    actions = torch.randn(8, 3, 4)
    weight = embedder.projection[0].weight
    assert weight.shape == (128, 4)
    assert list(embedder.state_dict()) == [
        "projection.0.weight",
        "normalization.running_mean",
        "normalization.running_var",
        "normalization.num_batches_tracked",
    ]
    flat = actions.reshape(24, 4) @ weight.T
    expected = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(embedder(actions), expected.reshape(8, 3, 128))
    torch.testing.assert_close(embedder.normalization.running_mean, 0.1 * flat.mean(0))
    torch.testing.assert_close(embedder.normalization.running_var, 0.9 + 0.1 * flat.var(0))


def test_the_mlp_has_one_hidden_relu_layer() -> None:
    embedder: Any = ActionEmbedder(2, 3, hidden_dim=7, norm=None)
    first, relu, last = embedder.projection
    actions = torch.randn(4, 5, 2)
    assert isinstance(relu, nn.ReLU)
    expected = (actions @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(embedder(actions), expected)
    assert first.weight.shape == (7, 2)
    assert (embedder.hidden_dim, embedder.norm) == (7, None)


@pytest.mark.parametrize(("norm", "kind", "bias"), [
    ("batch", nn.BatchNorm1d, False), ("layer", nn.LayerNorm, False), ("rms", nn.RMSNorm, False),
    (None, nn.Identity, True),
])  # fmt: skip
def test_a_bias_is_learnt_only_where_no_norm_follows(norm, kind: type, bias: bool) -> None:
    embedder: Any = ActionEmbedder(2, 3, norm=norm)
    assert isinstance(embedder.normalization, kind)
    assert (embedder.projection[-1].bias is not None) == bias
    assert (embedder.embed_dim, embedder.norm) == (3, norm)


@given(sizes, st.integers(2, 5), st.sampled_from(["batch", "layer", "rms", None]))
def test_in_eval_mode_an_embedding_depends_on_its_own_action_alone(b: int, t: int, norm) -> None:
    embedder = ActionEmbedder(3, 4, norm=norm).eval()
    actions = torch.randn(b, t, 3)
    changed = actions.clone()
    changed[0, 0] += 1
    before, after = embedder(actions), embedder(changed)
    assert torch.equal(before.flatten(0, 1)[1:], after.flatten(0, 1)[1:])
    torch.testing.assert_close(embedder(actions[:1, :1]), before[:1, :1])


def test_no_actions_at_all_leave_the_statistics_alone() -> None:
    embedder: Any = ActionEmbedder(3, 4)
    assert embedder(torch.randn(2, 0, 3)).shape == (2, 0, 4)
    assert torch.equal(embedder.normalization.running_var, torch.ones(4))


def test_float32_and_float64_agree() -> None:
    embedder = ActionEmbedder(3, 4)
    actions = torch.randn(5, 2, 3)
    single = embedder(actions)
    torch.testing.assert_close(single.double(), embedder.double()(actions.double()), atol=1e-4, rtol=1e-4)


@given(sizes, sizes, sizes)
def test_no_actions_embed_in_no_numbers(b: int, t: int, a: int) -> None:
    assert NoActions()(torch.randn(b, t, a)).shape == (b, t, 0)
    assert NoActions().embed_dim == 0
    assert not NoActions().state_dict()


@given(sizes, sizes, sizes, st.integers(0, 3))
def test_raw_actions_are_kept_and_filled_up_with_zeros(b: int, t: int, a: int, more: int) -> None:
    actions = torch.randn(b, t, a)
    out = RawActions(a + more)(actions)
    assert torch.equal(out[..., :a], actions)
    assert torch.equal(out[..., a:], torch.zeros(b, t, more))


@pytest.mark.parametrize("embedder", [ActionEmbedder(3, 4), NoActions(), RawActions(3)])
def test_another_rank_or_integer_actions_are_refused(embedder: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"actions must have the axes \(B, T, A\); got shape \(2, 3\)"):
        embedder(torch.randn(2, 3))
    with pytest.raises(
        TypeError, match=r"actions must be floating point; got torch\.int64\. Convert with actions\.float"
    ):
        embedder(torch.zeros(2, 3, 3, dtype=torch.long))


def test_another_action_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 3 numbers here; got actions of shape \(2, 5, 4\), 4 each.*action_dim=4"):
        ActionEmbedder(3, 8)(torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match=r"room for 3 numbers; got 4\. Build RawActions\(embed_dim=4\)"):
        RawActions(3)(torch.randn(2, 5, 4))


def test_another_dtype_or_device_is_refused() -> None:
    with pytest.raises(TypeError, match=r"weights, torch\.float32; got torch\.float64\. Convert with actions\.to"):
        ActionEmbedder(3, 8)(torch.randn(2, 5, 3).double())
    with pytest.raises(
        ValueError, match=r"actions must lie where the weights do, on cpu; got meta.*actions\.to\('cpu'\)"
    ):
        ActionEmbedder(3, 8)(torch.randn(2, 5, 3, device="meta"))
    with pytest.raises(TypeError, match=r"weights, torch\.bfloat16; got torch\.float32.*or run under torch\.autocast"):
        ActionEmbedder(3, 8).bfloat16()(torch.randn(2, 5, 3))
    with (
        torch.autocast("cpu", torch.bfloat16),  # which leaves float64 as it is, so the way out is another
        pytest.raises(TypeError, match=r"got torch\.float64\. Convert with actions\.to\(torch\.float32\)\.$"),
    ):
        ActionEmbedder(3, 8)(torch.randn(2, 5, 3).double())


@pytest.mark.parametrize(("lower", "higher"), [
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float64)
])  # fmt: skip
def test_actions_of_lower_precision_are_promoted_to_the_weights(lower: torch.dtype, higher: torch.dtype) -> None:
    embedder = ActionEmbedder(3, 8).to(higher).eval()
    actions = torch.randn(2, 5, 3).to(lower)
    assert torch.equal(embedder(actions), embedder(actions.to(higher)))


def test_autocast_takes_either_of_its_dtypes() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ActionEmbedder(3, 8)(torch.randn(2, 5, 3).bfloat16()).shape == (2, 5, 8)


@pytest.mark.parametrize(("a", "e"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_below_one_are_refused(a: int, e: int) -> None:
    with pytest.raises(
        ValueError, match=rf"must be at least 1; got {a} and {e}\. For a model without actions use NoActions"
    ):
        ActionEmbedder(a, e)
    assert ActionEmbedder(1, 1)(torch.randn(2, 1, 1)).shape == (2, 1, 1)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm must be one of 'batch', 'layer', 'rms', None; got 'group'"):
        ActionEmbedder(3, 4, norm="group")  # type: ignore[arg-type]


def test_nonsense_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_dim must be at least 1, or None for a linear map; got 0"):
        ActionEmbedder(3, 4, hidden_dim=0)
    with pytest.raises(ValueError, match=r"embed_dim must be at least 1, room for an action; got 0"):
        RawActions(0)
    assert RawActions(1)(torch.ones(1, 1, 1)).item() == 1
    assert ActionEmbedder(3, 4, hidden_dim=1)(torch.randn(2, 1, 3)).shape == (2, 1, 4)


def test_one_action_is_too_few_for_batch_norm_in_training() -> None:
    with pytest.raises(
        ValueError, match=r"In training mode batch norm needs at least two actions; got 1\. Use a larger"
    ):
        ActionEmbedder(3, 4)(torch.randn(1, 1, 3))
    assert ActionEmbedder(3, 4).eval()(torch.randn(1, 1, 3)).shape == (1, 1, 4)
    assert ActionEmbedder(3, 4, norm="layer")(torch.randn(1, 1, 3)).shape == (1, 1, 4)
    assert ActionEmbedder(3, 4)(torch.randn(1, 2, 3)).shape == (1, 2, 4)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"actions must be a torch\.Tensor; got list\. Convert with torch\.as_tensor\(actions"
    ):
        ActionEmbedder(3, 4)([[[1.0, 2.0, 3.0]]])
