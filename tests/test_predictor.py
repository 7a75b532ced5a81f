"""The conditioned predictor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seqjepa import ConditionedPredictor, SeqJEPA
from tests.builders import TinyEncoder, randomise, tiny_model

sizes = st.integers(1, 6)


@given(st.integers(2, 6), sizes, st.integers(0, 4), sizes, st.sampled_from([None, 1, 5]),
       st.sampled_from([torch.float32, torch.float64]))  # fmt: skip
def test_shapes(b: int, s: int, e: int, d: int, hidden: int | None, dtype: torch.dtype) -> None:
    predictor = ConditionedPredictor(s, e, d, hidden).to(dtype)
    out = predictor(torch.randn(b, s, dtype=dtype), torch.randn(b, e, dtype=dtype))
    assert out.shape == (b, d)
    assert out.dtype == dtype


def test_the_default_is_the_paper_s_mlp() -> None:
    predictor = ConditionedPredictor(state_dim=640, action_dim=128, dim=512)
    kinds = [type(layer) for layer in predictor.layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert {k: tuple(v.shape) for k, v in predictor.named_parameters()} == {
        "layers.0.weight": (1024, 768),
        "layers.1.weight": (1024,),
        "layers.1.bias": (1024,),
        "layers.3.weight": (512, 1024),
        "layers.3.bias": (512,),
    }


@pytest.mark.parametrize("hidden", [None, 7])
def test_it_is_a_map_of_state_and_action_side_by_side(hidden: int | None) -> None:
    predictor = randomise(ConditionedPredictor(3, 2, 4, hidden)).eval()
    state, action = torch.randn(5, 3), torch.randn(5, 2)
    p = dict(predictor.named_parameters()) | dict(predictor.named_buffers())
    x = state @ p["layers.0.weight"][:, :3].T + action @ p["layers.0.weight"][:, 3:].T
    x = (x - p["layers.1.running_mean"]) / (p["layers.1.running_var"] + 1e-5).sqrt()
    x = x * p["layers.1.weight"] + p["layers.1.bias"]
    if hidden:
        x = x.clamp(min=0) @ p["layers.3.weight"].T + p["layers.3.bias"]
    torch.testing.assert_close(predictor(state, action), x, atol=1e-5, rtol=1e-5)


def test_hidden_layers_follow_one_another_each_with_its_norm() -> None:
    predictor = randomise(ConditionedPredictor(3, 2, 4, 6, depth=3)).eval()
    kinds = [type(layer) for layer in predictor.layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 3 + [nn.Linear]
    state, action = torch.randn(5, 3), torch.randn(5, 2)
    p, x = dict(predictor.named_parameters()) | dict(predictor.named_buffers()), torch.cat([state, action], dim=1)
    for layer in (0, 3, 6):
        norm = f"layers.{layer + 1}"
        x = x @ p[f"layers.{layer}.weight"].T
        x = (x - p[f"{norm}.running_mean"]) / (p[f"{norm}.running_var"] + 1e-5).sqrt()
        x = (x * p[f"{norm}.weight"] + p[f"{norm}.bias"]).clamp(min=0)
    expected = x @ p["layers.9.weight"].T + p["layers.9.bias"]
    torch.testing.assert_close(predictor(state, action), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", None])
def test_one_hidden_layer_more_changes_no_name_of_the_first(norm: Any) -> None:
    one, two = (ConditionedPredictor(3, 2, 4, 6, depth=depth, norm=norm).state_dict() for depth in (1, 2))
    assert {k: one[k].shape for k in one if not k.startswith("layers.3")}.items() <= {
        k: v.shape for k, v in two.items()
    }.items()
    assert ("layers.3.bias" in two) == (norm is None)  # a bias only where no norm follows


def test_in_eval_mode_a_row_depends_on_itself_alone() -> None:
    predictor = ConditionedPredictor(3, 2, 4).eval()
    state, action = torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(predictor(state, action)[:1], predictor(state[:1], action[:1]))


def test_wrong_input_is_refused() -> None:
    predictor = ConditionedPredictor(3, 2, 4)
    state, action = torch.randn(5, 3), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"state must have the axes \(B, S\); got shape \(5, 1, 3\)"):
        predictor(state[:, None], action)
    with pytest.raises(ValueError, match=r"action must have the axes \(B, E\); got shape \(5, 1, 2\)"):
        predictor(state, action[:, None])
    with pytest.raises(ValueError, match=r"The state is 3 wide here; got shape \(5, 2\)"):
        predictor(action, action)
    with pytest.raises(ValueError, match=r"The action is 2 wide here; got shape \(5, 3\)"):
        predictor(state, state)
    with pytest.raises(ValueError, match=r"Every state needs one action; got 5 states, 4 actions"):
        predictor(state, action[:4])
    with pytest.raises(TypeError, match=r"action must have the dtype of the weights"):
        predictor(state, action.double())
    with pytest.raises(ValueError, match=r"state must lie where the weights do"):
        predictor(state.to("meta"), action)
    with pytest.raises(TypeError, match=r"state must be floating point"):
        predictor(state.long(), action)


@pytest.mark.parametrize("bad", [{"state_dim": 0}, {"action_dim": -1}, {"dim": 0}, {"hidden_dim": 0}])
def test_impossible_sizes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match=r"at least 1 and action_dim at least 0; got state_dim=.*\. For the linear form use hidden_dim=None\.$",
    ):
        ConditionedPredictor(**({"state_dim": 3, "action_dim": 2, "dim": 4, "hidden_dim": 5} | bad))


def test_one_source_is_too_few_for_batch_norm_in_training() -> None:
    predictor = ConditionedPredictor(3, 2, 4)
    with pytest.raises(ValueError, match=r"batch norm needs at least two sources; got 1.*model\.eval"):
        predictor(torch.randn(1, 3), torch.randn(1, 2))
    assert predictor.eval()(torch.randn(1, 3), torch.randn(1, 2)).shape == (1, 4)


def test_without_actions_their_dtype_and_device_do_not_matter() -> None:
    predictor = ConditionedPredictor(3, 0, 4)
    state = torch.randn(5, 3)
    for action in (torch.randn(5, 0, dtype=torch.float64), torch.randn(5, 0, device="meta")):
        assert predictor(state, action).dtype == torch.float32


@pytest.mark.parametrize(("norm", "kind"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm), (None, nn.Identity)])
@pytest.mark.parametrize("hidden", [None, 5])
def test_with_another_norm_a_row_depends_on_itself_alone_in_training_too(norm, kind, hidden: int | None) -> None:
    predictor = ConditionedPredictor(3, 2, 4, hidden, norm=norm)
    assert type(predictor.layers[1]) is kind
    assert (predictor.layers[0].bias is not None) == (norm is None)
    state, action = torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(predictor(state, action)[:1], predictor(state[:1], action[:1]))


def test_the_predictor_s_norm_is_saved_with_it_and_weights_keep_their_names(tmp_path: Path) -> None:
    model = tiny_model(predictor=ConditionedPredictor(12, 4, 8, 16, norm="layer"))
    model.save_pretrained(tmp_path)
    again = SeqJEPA.from_pretrained(tmp_path, encoder=TinyEncoder(8))
    assert again.predictor.norm == "layer"
    assert again.predictor.state_dict().keys() == model.predictor.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    tiny_model().save_pretrained(tmp_path)
    older = json.loads((tmp_path / "config.json").read_text())
    assert (config["predictor"]["norm"], older["predictor"].pop("norm")) == ("layer", "batch")
    (tmp_path / "config.json").write_text(json.dumps(older))  # as it was written before there was a choice
    assert SeqJEPA.from_pretrained(tmp_path, encoder=TinyEncoder(8)).predictor.norm == "batch"


def test_the_predictor_s_depth_is_saved_with_it_and_older_folders_have_one_hidden_layer(tmp_path: Path) -> None:
    model = randomise(tiny_model(predictor=ConditionedPredictor(12, 4, 8, 16, depth=2))).eval()
    model.save_pretrained(tmp_path / "deep")
    again = SeqJEPA.from_pretrained(tmp_path / "deep", encoder=TinyEncoder(8))
    state, action = torch.randn(5, 12), torch.randn(5, 4)
    assert again.predictor.depth == 2
    assert torch.equal(again.predict(state, action), model.predict(state, action))
    tiny_model().save_pretrained(tmp_path / "older")
    file = tmp_path / "older" / "config.json"
    older = json.loads(file.read_text())
    assert older["predictor"].pop("depth") == 1
    file.write_text(json.dumps(older))  # as it was written before there was a choice
    assert SeqJEPA.from_pretrained(tmp_path / "older", encoder=TinyEncoder(8)).predictor.depth == 1


@pytest.mark.parametrize("bad", [{"depth": 0}, {"depth": -1}, {"hidden_dim": None, "depth": 2}])
def test_impossible_depths_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"depth is the number of hidden layers, at least 1; got .* leave depth out\."):
        ConditionedPredictor(3, 2, 4, **bad)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm must be one of 'batch', 'layer', 'rms', None; got 'group'"):
        ConditionedPredictor(3, 2, 4, norm="group")  # type: ignore[arg-type]
