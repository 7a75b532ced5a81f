"""Training as the released code trained: the public blocks in its order reproduce its outputs, gradients and updates.

SeqJEPA's own forward departs from this order on purpose (docs/fidelity.md); the blocks must not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from seqjepa import RawActions, SeqJEPA, SeqJEPAOutput, StopGradientTarget
from seqjepa.interop import load_released
from tests.builders import joint
from tests.interop.test_released import FILES, RAW, RECORDINGS, case_inputs, cases, encoder_of, recording

CLOSE: Any = {"atol": 1e-5, "rtol": 1e-4}
# Ours is computed in float64, so that what is left is the recordings' own rounding in float32: below 1e-6, but up to
# 2.7e-5 behind the predictor's batch norm, which divides by the spread of four rows.
ROUNDED: Any = {"atol": 2e-6, "rtol": 1e-5, "check_dtype": False}
ROUNDED_BEHIND_BATCH_NORM: Any = {"atol": 5e-5, "rtol": 1e-4, "check_dtype": False}


class Released(NamedTuple):
    loss: Tensor
    state: Tensor
    z: Tensor
    target: Tensor
    prediction: Tensor
    tokens: Tensor


def released_forward(model: SeqJEPA, kind: str, x: dict[str, Tensor], relative: bool) -> Released:
    """The released order of calls, written with our blocks."""
    dtype = next(model.parameters()).dtype
    x = {key: value.to(dtype) if value.is_floating_point() else value for key, value in x.items()}
    views, last_view = x["x_obs"], x["x_target"]
    target_first = kind == "pls"
    if target_first:
        target = model.target(last_view)
    z = model.encode(views)
    if not target_first:
        target = model.target(last_view)

    if relative:
        rows, last = x["rel_latents"], x["rel_latents"][:, -1]
    else:
        rows = torch.cat([x["act_obs"].diff(dim=1), torch.zeros_like(x["act_obs"][:, :1])], dim=1)
        last = x["act_target"] - x["act_obs"][:, -1]
    if isinstance(model.embedder, RawActions):
        if relative:
            rows, last = rows.clone(), torch.zeros_like(last)  # the release zeroes the row its predictor reads
            rows[:, -1] = 0
        else:
            rows, last = x["act_obs"], x["act_target"]
        e, e_last = model.embed(rows), model.embed(last[:, None])[:, 0]
    else:
        if kind == "transforms":  # two batches for the action batch norm, in the order of the flavour
            e_last = model.embed(last[:, None])[:, 0]
            e = model.embed(rows)
        else:
            e = model.embed(rows)
            e_last = model.embed(last[:, None])[:, 0]
        e = torch.cat([e[:, :-1], torch.zeros_like(e[:, :1])], dim=1)
    tokens = torch.cat([z, e], dim=-1)
    state = model.aggregator(tokens)
    prediction = model.predict(state, e_last)
    return Released(model.loss(prediction, target).loss, state, z, target, prediction, tokens)


def assert_recorded_outputs(out: Released | SeqJEPAOutput, case: dict[str, Any]) -> None:
    torch.testing.assert_close(out.state, case["agg_out"], **ROUNDED)
    torch.testing.assert_close(out.z, case["enc_obs"], **ROUNDED)
    torch.testing.assert_close(out.target, case["enc_target"], **ROUNDED)
    torch.testing.assert_close(out.loss, case["loss"], **CLOSE, check_dtype=False)
    torch.testing.assert_close(out.prediction, case["pred_out"], **ROUNDED_BEHIND_BATCH_NORM)


def training_model(rec: dict[str, Any], state_dict: dict[str, Tensor]) -> SeqJEPA:
    model = load_released(state_dict, encoder=encoder_of(rec["config"])).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def renamed(model: SeqJEPA, released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors under our names: what loading them leaves in the model."""
    from seqjepa.interop.released import _our_name

    ours = {_our_name(key): value for key, value in released.items()}
    return {key: value for key, value in ours.items() if key in joint(model.state_dict())}


def test_the_released_order_covers_every_recording() -> None:
    assert len(FILES) == 11
    assert set(RAW) < set(FILES)


@pytest.mark.parametrize(("name", "index"), cases(FILES, "train"))
def test_train_mode_reproduces_outputs_gradients_and_statistics(name: str, index: int) -> None:
    rec = recording(name)
    case, m = rec["cases"][index], rec["cases"][index]["meta"]["seq_len"]
    model = training_model(rec, rec["state_dict"]).double()
    x = {k: v[:, :m] if k in ("x_obs", "act_obs", "rel_latents") else v for k, v in rec["inputs"].items()}
    out = released_forward(model, rec["config"]["kind"], x, case["meta"]["rel_latents_given"])
    out.loss.backward()

    assert_recorded_outputs(out, case)
    assert ("tokens_in" in case) == ("buffers_after" in case) == ("grads" in case)  # the full cases
    if "tokens_in" in case:
        torch.testing.assert_close(out.tokens, case["tokens_in"][:, 1:], **ROUNDED)

    norms = dict(zip(rec["grad_norm_names"], case["grad_norms"].tolist(), strict=True))
    gradients = joint({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    compared = 0
    for key, norm in renamed(model, norms).items():
        gradient = gradients.get(key)
        if norm < 0 or gradient is None:
            assert norm <= 0, key
            assert gradient is None, key
        elif key == "aggregator.norm.bias":  # analytically zero: a batch norm without bias before it follows
            assert gradient.norm() < 1e-4
        elif norm > 1e-6:
            assert gradient.double().norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-6), key
            compared += 1
    assert compared > 20
    for key, gradient in renamed(model, case.get("grads", {})).items():
        close: Any = {"atol": 1e-5, "rtol": 2e-3, "check_dtype": False}
        torch.testing.assert_close(gradients[key], gradient, **close, msg=partial("{}: {}".format, key))
    buffers = dict(model.named_buffers())
    for key, buffer in renamed(model, case.get("buffers_after", {})).items():
        torch.testing.assert_close(buffers[key], buffer, **CLOSE, check_dtype=False, msg=partial("{}: {}".format, key))


@pytest.mark.parametrize("name", ["transforms_trajectory.pt", "pls_trajectory.pt"])
def test_five_steps_reproduce_the_recorded_trajectory_target_included(name: str) -> None:
    rec = recording(name)
    config = rec["config"]
    model = training_model(rec, rec["initial_state_dict"])
    model.target.momentum = config["ema_decay"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step, x in enumerate(rec["inputs_per_step"]):
        out = released_forward(model, config["kind"], x, relative=False)
        optimizer.zero_grad()
        out.loss.backward()
        assert out.loss.item() == pytest.approx(rec["loss_per_step"][step].item(), abs=2e-5)
        total = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None]).norm()
        assert total.item() == pytest.approx(rec["total_grad_norm_per_step"][step].item(), rel=1e-3)
        optimizer.step()
        model.update_target()
    assert model.target.step == 5

    final, ours = renamed(model, rec["final_state_dict"]), joint(model.state_dict())
    assert any(key.startswith("target.encoder.") for key in final)
    for key, value in final.items():
        if key in ("aggregator.norm.bias", "predictor.layers.1.running_mean"):
            continue  # gradient analytically zero: Adam amplifies rounding
        mine = ours[key]
        if key.endswith("qkv.bias"):  # the keys' third, likewise
            third = len(value) // 3
            keep = torch.cat([torch.arange(third), torch.arange(2 * third, 3 * third)])
            mine, value = mine[keep], value[keep]
        torch.testing.assert_close(mine, value, atol=2e-5, rtol=1e-4, msg=partial("{}: {}".format, key))


def sample(draw: Callable[[], Tensor], n: int) -> Tensor:
    return torch.stack([draw() for _ in range(n)])


def test_dropout_has_the_recorded_strength() -> None:
    """Our draws come in another order, so only their distribution can agree."""
    rec = torch.load(RECORDINGS / "transforms_a_cond_learn_ema.pt", weights_only=True)
    recorded = next(d for d in rec["dropout"] if not d["rel_latents_given"])
    m = recorded["seq_len"]
    x = {k: v[:, :m] if k in ("x_obs", "act_obs", "rel_latents") else v for k, v in rec["inputs"].items()}
    model = load_released(rec["state_dict"], encoder=encoder_of(rec["config"])).train()
    assert not isinstance(model.target, StopGradientTarget)
    with torch.no_grad():
        losses = sample(lambda: released_forward(model, "transforms", x, relative=False).loss, recorded["n"])
    error = (recorded["loss_std"] ** 2 / recorded["n"] + losses.var() / len(losses)).sqrt()
    assert abs(losses.mean() - recorded["loss_mean"]) < 4 * error
    assert losses.std().item() == pytest.approx(recorded["loss_std"].item(), rel=0.25)


def undeparted() -> list[Any]:
    """Recorded training cases in which none of our departures plays a part: without actions, or with one view."""
    found = []
    for parameter in cases([name for name in FILES if name not in RAW], "train"):
        name, index = parameter.values
        meta = recording(name)["cases"][index]["meta"]
        if "nocond" in name or meta["seq_len"] == 1:
            found.append(parameter)
    return found


@pytest.mark.parametrize(("name", "index"), undeparted())
def test_our_own_forward_trains_as_the_release_where_no_departure_comes_in(name: str, index: int) -> None:
    rec = recording(name)
    case = rec["cases"][index]
    model = training_model(rec, rec["state_dict"]).double()
    out = model(*(inputs.double() for inputs in case_inputs(rec, case["meta"])))
    out.loss.backward()
    assert_recorded_outputs(out, case)
