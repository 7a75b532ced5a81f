"""The examples on imagination and on streams: what they compare is what they say, and a small size runs."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import imagine
import stream
from claims_model import EMBED, build

from seqjepa import CausalAggregator, SeqJEPA
from seqjepa.data import ViewPool
from seqjepa.groups import Rotation3D


def smoke(monkeypatch: pytest.MonkeyPatch, module: Any, folder: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--preset", "smoke", "--output", str(folder), *options])
    module.main()


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def ends_politely_and_does_no_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: Any, folder: Path, report: str
) -> None:
    """What is done in the folder is reported again; Ctrl-C in a run that is not says where things are."""
    monkeypatch.setattr(module, "learn", interrupted)
    smoke(monkeypatch, module, folder)
    assert report in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        smoke(monkeypatch, module, folder, "--seed", "1")
    assert end.value.code == 130
    assert f"goes on from the last checkpoint in {folder}" in capsys.readouterr().out


def test_digits_turn_by_45_degrees_at_most_from_any_angle() -> None:
    generator = torch.Generator().manual_seed(0)
    sequence = imagine.MEASURING(torch.rand(500, 1, 12, 12, generator=generator), generator=generator)
    angles = sequence.parameters
    assert isinstance(angles, torch.Tensor)
    assert angles.shape == (500, imagine.OBSERVED + imagine.HORIZON, 1)
    assert (sequence.actions.abs() <= math.pi / 4 + 1e-5).all()
    torch.testing.assert_close(imagine.GROUP.actions(angles), sequence.actions)
    for t in range(angles.shape[1]):  # uniform all round at every step: of no angle more is known than of another
        mean = torch.stack([angles[:, t].cos(), angles[:, t].sin()]).mean(dim=1).norm()
        assert mean < 3 / math.sqrt(500)
    assert sequence.actions[:, 0].std() == pytest.approx(math.pi / 4 / math.sqrt(3), rel=0.1)


def test_one_step_looks_at_no_later_view_and_the_others_add_their_objective_to_it() -> None:
    images, generator = torch.rand(8, 1, 12, 12), torch.Generator().manual_seed(0)
    views, actions, *_ = imagine.TRAINING(images, generator=generator)
    later = views.clone()
    later[:, imagine.OBSERVED + 1 :] = torch.nan
    models = {condition: imagine.new_model(condition, 10, seed=3) for condition in imagine.CONDITIONS}
    first = models["one step"].state_dict()
    for condition, model in models.items():
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, first[name]), (condition, name)
    out = {condition: model(views, actions) for condition, model in models.items()}
    plain = models["untrained"](later, actions)  # the same weights, moved once by nothing but batch norm
    assert plain.loss.isfinite()
    assert out["one step"].loss == out["one step"].terms["distance"]
    for condition, extra in (("roll-out", ["rollout_1", "rollout_2", "rollout_3"]), ("composed", ["pairs"])):
        terms = out[condition].terms
        added = torch.stack([terms[name] for name in extra]).mean()
        torch.testing.assert_close(out[condition].loss, (terms["distance"] + added) / 2)
        torch.testing.assert_close(terms["distance"], out["one step"].loss)


def test_a_model_that_knows_the_angle_is_found_to_be_0_degrees_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imagined by an oracle: the target's own representation of the view that comes."""
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    model = imagine.new_model("one step", 10, seed=0).eval()
    seen = imagine.features(model, images, 1, seed=0)
    step = 2 * math.pi / imagine.GRID
    assert seen.elements is not None
    angles = (seen.elements[:, imagine.OBSERVED :] / step).round() * step
    with torch.no_grad():
        ahead = model.target(imagine.MEASURING.render(images, angles).flatten(0, 1)).unflatten(0, (6, -1))
    monkeypatch.setattr(model, "imagine_from", lambda *_: ahead)
    found = imagine.turned_to(model, images, seen)[..., None]
    assert (imagine.GROUP.distance(found, angles) < 1e-3).all()


def test_models_imagine_in_a_small_size_and_a_run_that_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke(monkeypatch, imagine, tmp_path)
    said = capsys.readouterr().out
    report = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert report in said
    for condition in imagine.CONDITIONS:
        result = json.loads((tmp_path / f"{imagine.named(condition, 0)}.json").read_text(encoding="utf-8"))
        numbers = result["numbers"]
        assert {len(values) for values in numbers.values()} == {imagine.HORIZON}
        assert all(value <= 1 for kind in imagine.KINDS for value in numbers[kind])
        assert all(0 <= value <= 180 for value in numbers["off"])
        assert f"\n{condition}" in report
    assert (tmp_path / "imagine.png").stat().st_size > 10_000
    ends_politely_and_does_no_run_again(monkeypatch, capsys, imagine, tmp_path, report)


def causal_model() -> SeqJEPA:
    torch.manual_seed(0)
    model = build(stream.SIDE, stream.DIM, 4, 10)
    model.aggregator = CausalAggregator(stream.DIM + EMBED, dropout=0.0, norm_first=True)
    return model.eval()


def pool(count: int) -> ViewPool:
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(256, (count, stream.SIDES, 3, stream.SIDE, stream.SIDE), generator=generator).byte()
    poses = Rotation3D.random(count, stream.SIDES, generator=generator)
    return ViewPool(views, poses, Rotation3D(), num_views=2, labels=torch.arange(count))


def test_a_stream_shows_each_object_once_from_each_side() -> None:
    of = stream.Stream.of(pool(5), 7, 4, torch.Generator().manual_seed(0))
    assert of.objects.shape == of.sides.shape == (7, 4 * stream.SIDES)
    for part in of.objects.split(stream.SIDES, dim=1):
        assert (part == part[:, :1]).all()
    for part in of.sides.split(stream.SIDES, dim=1):
        assert torch.equal(part.sort(dim=1).values, torch.arange(stream.SIDES).expand(7, -1))


def test_readers_of_a_stream_see_what_they_are_said_to_see() -> None:
    model, some = causal_model(), pool(5)
    of = stream.Stream.of(some, 3, 3, torch.Generator().manual_seed(0))
    found, z = stream.read(model, some, of)
    with torch.no_grad():
        e = model.embed(of.actions)
        whole = model.aggregate_prefixes(z, e)
        parts = [
            model.aggregate_prefixes(z[:, t : t + stream.SIDES], e[:, t : t + stream.SIDES - 1])
            for t in range(0, z.shape[1], stream.SIDES)
        ]
    states = {name: torch.stack(one.states, dim=1) for name, one in found.items()}
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(states["no window"], whole)
    close(states["begun anew, no window"], torch.cat(parts, dim=1))
    windowed = states[f"window of {stream.WINDOW}"]
    close(windowed[:, : stream.WINDOW], whole[:, : stream.WINDOW])
    assert not torch.allclose(windowed[:, -1], whole[:, -1], atol=1e-4, rtol=1e-4)
    kept = {name: one.kept for name, one in found.items()}
    width = 2 * 3 * (stream.DIM + EMBED)  # keys and values of three layers
    assert kept["no window"] == [width * t for t in range(z.shape[1])]
    assert kept[f"window of {stream.WINDOW}"] == [width * min(t, stream.WINDOW - 1) for t in range(z.shape[1])]


def test_streams_are_read_in_a_small_size_beside_the_paper_s_aggregator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stream, "LENGTHS", (2, 8))  # probes of few lengths: fits are what takes time here
    smoke(monkeypatch, stream, tmp_path)
    report = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert report in capsys.readouterr().out
    for condition in stream.PRESETS["smoke"].conditions:
        result = json.loads((tmp_path / f"{stream.named(condition, 0)}.json").read_text(encoding="utf-8"))
        assert [*result["grid"]] == [str(m) for m in stream.LENGTHS]
        assert ("stream" in result) == (condition == stream.STREAMED)
        assert f"\n{condition}" in report or report.startswith(condition)
    assert (tmp_path / "stream.png").stat().st_size > 10_000
    ends_politely_and_does_no_run_again(monkeypatch, capsys, stream, tmp_path, report)
