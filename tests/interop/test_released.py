"""Checkpoints of the released code: recorded outputs are reproduced, and nothing else is let in."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa import ActionEmbedder, EMATarget, NoActions, RawActions, SeqJEPA, StopGradientTarget
from seqjepa.interop import load_released
from seqjepa.presets import get_preset
from tests.builders import TinyEncoder, joint, randomise

RECORDINGS = Path(__file__).parent.parent / "recordings"
FILES = sorted(path.name for path in RECORDINGS.glob("*_?_*.pt"))  # neither trajectories nor data
RAW = [name for name in FILES if "cond_nolearn" in name and "nocond" not in name]
MEANINGFUL = [name for name in FILES if name not in RAW]


def recording(name: str) -> dict[str, Any]:
    return torch.load(RECORDINGS / name, weights_only=True)


def encoder_of(config: dict[str, Any]) -> TinyEncoder:
    return TinyEncoder(config["tiny"], config["cifar_resnet"])


def case_inputs(rec: dict[str, Any], meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Our contract's views and relative actions from what the released code was given."""
    x, m = rec["inputs"], meta["seq_len"]
    views = torch.cat([x["x_obs"][:, :m].float(), x["x_target"].float()[:, None]], dim=1)
    if meta["rel_latents_given"]:
        return views, x["rel_latents"][:, :m]
    return views, torch.cat([x["act_obs"][:, :m], x["act_target"][:, None]], dim=1).diff(dim=1)


def cases(names: list[str], mode: str) -> list[Any]:
    return [
        pytest.param(name, index, id=f"{name}-{index}")
        for name in names
        for index, case in enumerate(recording(name)["cases"])
        if case["meta"]["mode"] == mode
    ]


def test_every_recorded_configuration_is_here() -> None:
    assert len(MEANINGFUL) == 9
    assert len(RAW) == 2


@pytest.mark.parametrize(("name", "index"), cases(MEANINGFUL, "eval"))
def test_eval_mode_reproduces_the_recorded_outputs(name: str, index: int) -> None:
    rec = recording(name)
    case = rec["cases"][index]
    m = case["meta"]["seq_len"]
    model = load_released({"model": rec["state_dict"]}, encoder=encoder_of(rec["config"]))
    views, actions = case_inputs(rec, case["meta"])
    with torch.no_grad():
        out = model(views, actions)
        e = model.embed(actions)
    close: Any = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(out.z, case["enc_obs"], **close)
    torch.testing.assert_close(out.target, case["enc_target"], **close)
    torch.testing.assert_close(out.state, case["agg_out"], **close)
    torch.testing.assert_close(out.prediction, case["pred_out"], **close)
    torch.testing.assert_close(out.loss, case["loss"], **close)
    if "act_emb_obs" in case:
        torch.testing.assert_close(e[:, -1], case["act_emb_target"], **close)
        torch.testing.assert_close(e[:, : m - 1], case["act_emb_obs"][:, : m - 1], **close)


@pytest.mark.parametrize(("name", "index"), cases(RAW, "eval"))
def test_raw_actions_differ_from_the_release_only_in_the_action_it_loses(name: str, index: int) -> None:
    rec = recording(name)
    case = rec["cases"][index]
    model = load_released({"model": rec["state_dict"]}, encoder=encoder_of(rec["config"]))
    assert isinstance(model.embedder, RawActions)
    views, actions = case_inputs(rec, case["meta"])
    close: Any = {"atol": 1e-5, "rtol": 0.0}
    with torch.no_grad():
        out, e = model(views, actions), model.embed(actions)
        torch.testing.assert_close(out.z, case["enc_obs"], **close)
        torch.testing.assert_close(out.target, case["enc_target"], **close)
        if case["meta"]["rel_latents_given"]:
            # Their tokens are ours; their predictor reads zeros where ours reads the action.
            torch.testing.assert_close(out.state, case["agg_out"], **close)
            blind = model.predict(out.state, torch.zeros_like(e[:, -1]))
            torch.testing.assert_close(blind, case["pred_out"], **close)
        else:
            # They take absolute parameters, the last one included.
            x, m = rec["inputs"], case["meta"]["seq_len"]
            absolute = model.embed(torch.cat([x["act_obs"][:, :m], x["act_target"][:, None]], dim=1))
            state = model.aggregator(torch.cat([out.z, absolute[:, :-1]], dim=-1))
            torch.testing.assert_close(state, case["agg_out"], **close)
            torch.testing.assert_close(model.predict(state, absolute[:, -1]), case["pred_out"], **close)
        assert (out.prediction - case["pred_out"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "embedder", "target"),
    [
        ("transforms_a_cond_learn_ema.pt", ActionEmbedder, EMATarget),
        ("transforms_b_cond_learn_noema.pt", ActionEmbedder, StopGradientTarget),
        ("transforms_c_nocond_ema.pt", NoActions, EMATarget),
        ("transforms_e_cond_nolearn_pad.pt", RawActions, StopGradientTarget),
        ("pls_c_nocond.pt", NoActions, EMATarget),
    ],
)
def test_parts_and_sizes_are_read_off_the_weights(name: str, embedder: type, target: type) -> None:
    rec = recording(name)
    config = rec["config"]
    model = load_released(rec["state_dict"], encoder=encoder_of(config))
    assert type(model.embedder) is embedder
    assert type(model.target) is target
    assert model.aggregator.dim == config["emb_dim"]
    assert model.aggregator.depth == config["num_enc_layers"]
    assert model.predictor.dim == config["res_out_dim"]
    assert not any(module.training for module in model.modules())


def test_linear_and_mlp_predictors_are_told_apart() -> None:
    linear = recording("transforms_f_linear_predictor.pt")
    mlp = recording("pls_d_predhidden0.pt")
    assert load_released(linear["state_dict"], encoder=encoder_of(linear["config"])).predictor.hidden_dim is None
    assert load_released(mlp["state_dict"], encoder=encoder_of(mlp["config"])).predictor.hidden_dim == 24


@pytest.fixture
def rec() -> dict[str, Any]:
    return recording("transforms_a_cond_learn_ema.pt")


def same(a: SeqJEPA, b: SeqJEPA) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


def test_a_file_with_optimizer_arguments_and_probes_loads(rec: dict[str, Any], tmp_path: Path) -> None:
    probes = {"online_linprobe.0.weight": torch.zeros(10, 40), "rot_regressor.2.bias": torch.zeros(4)}
    checkpoint = {
        "model": rec["state_dict"] | probes,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 3,
        "args": argparse.Namespace(lr=4e-4, ema=True),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    from_file = load_released(tmp_path / "checkpoint.pth", encoder=encoder_of(rec["config"]))
    assert same(from_file, load_released(rec["state_dict"], encoder=encoder_of(rec["config"])))


def test_half_precision_weights_are_cast(rec: dict[str, Any]) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in rec["state_dict"].items()}
    model = load_released(halves, encoder=encoder_of(rec["config"]))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.aggregator.token, halves["agg_token"].float())


def test_prefixes_of_parallel_and_compiled_models_are_dropped(rec: dict[str, Any]) -> None:
    wrapped = {f"module._orig_mod.{k}": v for k, v in rec["state_dict"].items()}
    encoder = encoder_of(rec["config"])
    assert same(load_released(wrapped, encoder=encoder), load_released(rec["state_dict"], encoder=encoder))


@pytest.mark.parametrize(("preset", "stem"), [("3diebench-rotation", 7), ("saccades-32", 3)])
def test_without_an_encoder_a_resnet18_is_built_with_the_stem_of_the_weights(preset: str, stem: int) -> None:
    ours = randomise(get_preset(preset).model(steps_per_epoch=1)).eval()
    state = {}
    for key, value in joint(ours.state_dict()).items():
        if key == "target._extra_state":
            continue
        for mine, theirs in (
            ("target.encoder.", "target_encoder."),
            ("embedder.projection.", "action_proj."),
            ("embedder.normalization.", "action_proj.1."),
            ("predictor.layers.", "predictor."),
            ("aggregator.token", "agg_token"),
            ("aggregator.norm.", "transformer_encoder.norm."),
            ("aggregator.layers.", "transformer_encoder.transformer_encoder.layers."),
            (".qkv.", ".self_attn.in_proj_"),
            (".out.", ".self_attn.out_proj."),
            (".mlp.0.", ".linear1."),
            (".mlp.3.", ".linear2."),
        ):
            key = key.replace(mine, theirs)
        state[key] = value
    model = load_released(state)
    assert model.encoder.conv1.kernel_size == (stem, stem)
    assert same(model, ours)


# --- bad input: nothing is loaded by half, nothing unknown is let in ---


def test_unknown_weights_are_listed(rec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"neither released model has.*decoder\.bias, my_probe\.weight"):
        load_released(
            rec["state_dict"] | {"my_probe.weight": torch.zeros(1), "decoder.bias": torch.zeros(1)},
            encoder=encoder_of(rec["config"]),
        )


def test_a_failed_load_leaves_the_given_encoder_untouched(rec: dict[str, Any]) -> None:
    encoder = encoder_of(rec["config"])
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    broken = dict(rec["state_dict"])
    broken["transformer_encoder.norm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"does not fit TinyEncoder(.|\n)*norm\.weight: \(3,\) given, \(40,\) needed"):
        load_released(broken, encoder=encoder)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert encoder.training


def test_another_encoder_is_refused(rec: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"does not fit TinyEncoder(.|\n)*encoder\.conv1\.weight: \(64, 3, 3, 3\) given"
    ):
        load_released(rec["state_dict"], encoder=TinyEncoder(32, cifar_stem=False))


def test_another_method_s_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has agg_token and predictor\.0\.weight; got the keys encoder\.conv1"):
        load_released({"model": {"encoder.conv1.weight": torch.zeros(1)}})


def test_a_checkpoint_without_its_encoder_is_refused(rec: dict[str, Any]) -> None:
    headless = {k: v for k, v in rec["state_dict"].items() if not k.startswith("encoder.")}
    with pytest.raises(ValueError, match=r"ResNet-18; got the encoder weights nothing.*encoder=\.\.\."):
        load_released(headless)


def test_a_checkpoint_without_its_transformer_is_refused(rec: dict[str, Any]) -> None:
    headless = {k: v for k, v in rec["state_dict"].items() if "layers" not in k}
    with pytest.raises(ValueError, match="lacks weights of a transformer"):
        load_released(headless, encoder=encoder_of(rec["config"]))


def test_widths_that_contradict_each_other_are_refused(rec: dict[str, Any]) -> None:
    broken = rec["state_dict"] | {"predictor.0.weight": torch.zeros(40, 47)}
    with pytest.raises(ValueError, match=r"encoder output \(32\).*tokens 40 wide and a predictor that reads 47"):
        load_released(broken, encoder=encoder_of(rec["config"]))


@pytest.mark.parametrize("entry", [[1, 2], "weights", None])
def test_a_model_entry_that_is_no_state_dict_is_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match="`model` entry must be a state dict"):
        load_released({"model": entry})


def test_values_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="holds tensors only; got int at 'agg_token'"):
        load_released({"agg_token": 3})


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_released(tmp_path / "nowhere.pth")


def test_a_truncated_file_is_refused(rec: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": rec["state_dict"]}, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"checkpoint\.pth is (truncated|no checkpoint)"):
        load_released(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt is (truncated|no checkpoint)"):
        load_released(tmp_path / "notes.txt")


class Hostile:
    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["zip", "pickle"])
def test_a_hostile_file_is_refused_and_runs_nothing(how: str, tmp_path: Path) -> None:
    hostile = Hostile()
    hostile.path = str(tmp_path / "ran")  # type: ignore[attr-defined]
    pickle.loads(pickle.dumps(hostile))
    (tmp_path / "ran").rmdir()  # it is armed: plain pickle runs it
    path = tmp_path / "checkpoint.pth"
    if how == "zip":
        torch.save({"model": hostile}, path)
    else:
        path.write_bytes(pickle.dumps({"model": hostile}, protocol=2))
    with pytest.raises(ValueError, match=r"nothing was run\. It holds \w+\.mkdir\.$") as error:
        load_released(path)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_file_without_a_mapping_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="mapping with a `model` entry; got list"):
        load_released(tmp_path / "list.pth")


def test_layers_with_gaps_are_refused_before_any_is_built(rec: dict[str, Any]) -> None:
    key = "transformer_encoder.transformer_encoder.layers.{}.linear1.weight"
    broken = rec["state_dict"] | {key.format(10**9): torch.zeros(1)}
    with pytest.raises(ValueError, match=r"numbered from 0 without a gap; got \[0, 1, 1000000000\]"):
        load_released(broken, encoder=encoder_of(rec["config"]))


@pytest.mark.parametrize("shape", [(8,), (8, 0)])
def test_an_embedder_without_actions_is_refused(rec: dict[str, Any], shape: tuple[int, ...]) -> None:
    broken = rec["state_dict"] | {"action_proj.0.weight": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"action_proj\.0\.weight must be \(E, A\); got shape"):
        load_released(broken, encoder=encoder_of(rec["config"]))


def test_a_float64_encoder_ends_in_float32(rec: dict[str, Any]) -> None:
    model = load_released(rec["state_dict"], encoder=encoder_of(rec["config"]).double())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("probe", [
    "online_linprobe.0.weight", "online_res_probe.0.bias", "online_agg_probe.0.weight", "online_equiprobe.4.weight",
    "agg_classifier.weight", "res_classifier.bias", "pos_regressor.weight", "rot_regressor.2.weight",
    "color_regressor.weight", "crop_regressor.0.weight", "jitter_regressor.4.bias", "blur_regressor.weight",
])  # fmt: skip
def test_every_probe_of_the_released_scripts_is_dropped_by_name(rec: dict[str, Any], probe: str) -> None:
    model = load_released(rec["state_dict"] | {probe: torch.zeros(2)}, encoder=encoder_of(rec["config"]))
    assert same(model, load_released(rec["state_dict"], encoder=encoder_of(rec["config"])))
