"""The examples run as their first lines say, in a small size."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import claims_model  # noqa: E402
import claims_rules  # noqa: E402
import claims_runs  # noqa: E402
import compare_methods  # noqa: E402
import compare_report  # noqa: E402
import compare_runs  # noqa: E402
import objects3d  # noqa: E402
import pictures  # noqa: E402
import plan  # noqa: E402
import quickstart  # noqa: E402
import reproduce_claims  # noqa: E402
import resumed  # noqa: E402
import robot_arm  # noqa: E402
import running  # noqa: E402
import saccades  # noqa: E402
import small  # noqa: E402
import wall  # noqa: E402

from seqjepa import NoActions, SeqJEPA, ViewSequence  # noqa: E402
from seqjepa.evaluation import evaluate  # noqa: E402
from seqjepa.functional import cosine_distance  # noqa: E402
from seqjepa.groups import Rotation3D  # noqa: E402


def quick(monkeypatch: pytest.MonkeyPatch, module: Any, *options: str) -> None:
    """An example in this process, with linear probes, which take seconds."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *options])
    cheap = {"hidden": (), "progress": False}
    monkeypatch.setattr(module, "evaluate", lambda *given, **named: evaluate(*given, **(named | cheap)))
    module.main()


def test_the_quickstart_measures_draws_and_goes_on_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = quickstart.split()
    assert (len(train), len(test), train[0][0].shape) == (1400, 397, (1, 12, 12))
    monkeypatch.setattr(quickstart, "split", lambda: (train[:300], test[:200]))
    options, folder = ["--steps", "3", "--output", str(tmp_path)], tmp_path / "3-steps-seed-0"
    with monkeypatch.context() as patched:
        patched.setattr(quickstart, "measure", interrupted)
        with pytest.raises(SystemExit) as end:
            quick(patched, quickstart, *options)
    assert end.value.code == 130
    assert f"The same command goes on from the last checkpoint in {folder}" in capsys.readouterr().out
    weights = folder / "with-actions" / "model" / "model.safetensors"
    before = load_file(weights)
    quick(monkeypatch, quickstart, *options)
    assert all(torch.equal(value, before[name]) for name, value in load_file(weights).items())
    said = capsys.readouterr().out
    rows = {
        line[:22].strip(): line[22:].split() for line in said.splitlines() if line.startswith(("accuracy %", "R² "))
    }
    assert rows.keys() >= {"accuracy %, z", "accuracy %, state 5", "R² turn, z", "R² shift, z"}
    for name, row in rows.items():  # with actions, without, untrained
        assert len(row) == 3
        assert all(float(value) <= (1 if name.startswith("R²") else 100) for value in row)
    assert (folder / "quickstart.png").stat().st_size > 10_000
    for name in ("with-actions", "without-actions"):
        again = SeqJEPA.from_pretrained(folder / name / "model", encoder=small.small_convnet(16, channels=1))
        assert json.loads((folder / name / "card.json").read_text(encoding="utf-8"))["top1"]
        assert "R² relative, z pairs" in (folder / name / "card.txt").read_text(encoding="utf-8")
    assert isinstance(again.embedder, NoActions)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_robot_arm_is_learnt_from_and_measured_beside_an_untrained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(robot_arm, "VIDEOS_TO_MEASURE", 48)
    quick(monkeypatch, robot_arm, "--steps", "2", "--videos", "64", "--output", str(tmp_path))
    said = capsys.readouterr().out
    assert "64 training and 48 test sources, 4 views each" in said  # windows of one video are one source
    assert "untrained" in said
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"card.json", "checkpoints", "model", "views.png"}
    monkeypatch.setattr(robot_arm, "train", interrupted)
    with pytest.raises(SystemExit) as end:
        quick(monkeypatch, robot_arm, "--steps", "2", "--videos", "64", "--output", str(tmp_path))
    assert end.value.code == 130
    assert f"goes on from the last checkpoint in {folder}" in capsys.readouterr().out


def test_an_arm_that_is_turned_looks_as_its_picture_turned() -> None:
    joints, colours = torch.tensor([[0.3, 0.8], [-2.0, 1.5]]), torch.rand(3, 3)
    quarter = torch.tensor([math.pi / 2, 0.0])
    for tool in range(len(robot_arm.TOOLS)):
        before, after = (robot_arm.draw(j, tool, colours) for j in (joints, joints + quarter))
        torch.testing.assert_close(after, before.rot90(-1, (-2, -1)), atol=1e-4, rtol=0)


def test_videos_of_an_arm_have_exact_actions_and_joints_that_stop() -> None:
    first, second = robot_arm.record(2, seed=0)
    assert (first.views.shape, first.views.dtype) == ((40, 3, 32, 32), torch.uint8)
    torch.testing.assert_close(first.parameters[:-1] + first.actions, first.parameters[1:])
    assert (first.parameters.abs() <= robot_arm.LIMITS).all()
    assert torch.equal(robot_arm.record(2, seed=0)[1].views, second.views)
    assert not torch.equal(first.views, second.views)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        pytest.param("digits", ["--steps", "5"], marks=pytest.mark.nightly),
        ("labelled", ["--steps", "2", "--compare", "--fixations", "uniform"]),
        pytest.param("unlabelled", ["--steps", "1", "--preset", "gpu"], marks=pytest.mark.nightly),
    ],
)
def test_the_saccades_train_measure_and_draw_on_digits_and_on_a_folder(
    data: str, options: list[str], tmp_path: Path
) -> None:
    images = {"labelled": tmp_path / "images", "unlabelled": tmp_path / "images" / "beds"}.get(data)
    if images is not None:
        noise = np.random.default_rng(0)
        for name in ("beds", "sofas"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for i in range(10):
                pixels = noise.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
        options = [*options, "--images", str(images)]
    output = tmp_path / "runs"
    command = [sys.executable, "-W", "error", "examples/saccades.py", *options, "--output", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith(("accuracy %", "R² "))]
    table = {row[:22].strip(): [float(number) for number in row[22:].split()] for row in rows}
    assert ("accuracy %, state 5" in table) == (data != "unlabelled")
    assert len(table["R² position, z"]) == (2 if data == "labelled" else 1)
    assert all(value <= 1 for name, values in table.items() for value in values if name.startswith("R²"))
    assert "with actions: 100%" in result.stderr
    (folder,) = output.iterdir()
    assert f"In {folder}: views.png, saccades.png, table.json," in result.stdout
    models = {"with-actions", "without-actions"} if data == "labelled" else {"with-actions"}
    assert {path.name for path in folder.iterdir()} == {"saccades.png", "views.png", "table.json", *models}
    encoder = {"encoder": saccades.small_convnet()} if data != "unlabelled" else {}
    for name in models:
        SeqJEPA.from_pretrained(folder / name / "model", **encoder)


@pytest.mark.nightly
def test_objects3d_trains_measures_and_draws(tmp_path: Path) -> None:
    options = ["--objects", "160", "--steps", "5", "--output", str(tmp_path)]
    command = [sys.executable, "-W", "error", "examples/objects3d.py", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith(("accuracy %", "R² ", "error °"))]
    table = {row[:22].strip(): float(row[22:]) for row in rows}
    assert set(table) >= {"accuracy %, z", "accuracy %, state 5", "R² rotation, z", "R² rotation, state 1"}
    assert 6 < table["accuracy %, z"] < 100
    assert all(value <= 1 for name, value in table.items() if name.startswith("R²"))
    assert 40 < table["error °, z"] < 120
    assert "with actions: 100%" in result.stderr
    folder = tmp_path / "cpu-160-objects-5-steps-seed-0"
    assert f"In {folder}: objects3d.png, table.json," in result.stdout
    assert (folder / "objects3d.png").stat().st_size > 10_000
    assert json.loads((folder / "table.json").read_text(encoding="utf-8"))["with actions"].keys() == table.keys()
    again = SeqJEPA.from_pretrained(folder / "with-actions" / "model", encoder=small.small_convnet(32))
    assert again.embedder.action_dim == 4


def claims(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """The script in this process: three starts would import all libraries three times."""
    monkeypatch.setattr(sys, "argv", ["reproduce_claims.py", "--preset", "smoke", *options])
    reproduce_claims.main()


def test_a_run_of_the_claims_that_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--only", "wall, uniform", "--seed", "7", "--output", str(tmp_path)]
    claims(monkeypatch, *options)
    first = capsys.readouterr().out
    assert "1 of 1 runs left; now wall, uniform, seed 7" in first
    numbers = tmp_path / "wall-uniform-7.json"
    written, report = numbers.stat().st_mtime_ns, (tmp_path / "report.md").read_text(encoding="utf-8")
    found = json.loads(numbers.read_text(encoding="utf-8"))["numbers"]
    assert {"top-1 %, state of 5", "top-1 %, mean of 5 z", "untrained, top-1 %, state of 5"} <= set(found)
    assert 15 < found["pictures seen %"] < 35
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["claims"] == {}  # three gazes are needed
    claims(monkeypatch, *options)
    assert report in capsys.readouterr().out
    assert numbers.stat().st_mtime_ns == written
    numbers.unlink()  # a start that was stopped between training and measuring
    monkeypatch.setattr(reproduce_claims, "trained", lambda *_: pytest.fail("trained again"))
    claims(monkeypatch, *options)
    assert json.loads(numbers.read_text(encoding="utf-8"))["numbers"] == found
    other = numbers.read_text(encoding="utf-8").replace('"instances": 64', '"instances": 63')
    numbers.write_text(other, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"is of other settings than the preset has now; move it away"):
        claims(monkeypatch, *options)


def test_of_two_starts_in_one_folder_each_run_is_done_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--seeds", "1", "--output", str(tmp_path)])
    first, second = (resumed.asked("", {"hour": claims_runs.PRESETS["hour"]}, "abc", output="") for _ in range(2))
    mine, theirs, done = resumed.each(first, lambda _: 1.0), resumed.each(second, lambda _: 1.0), []
    for runs in (mine, theirs, theirs, mine):
        for seed, condition in runs:
            done.append(condition)
            resumed.write(tmp_path / f"{resumed.named(condition, seed)}.json", "{}")
            break
    assert done == ["a", "b", "c"]
    assert next(mine, None) is None
    assert next(theirs, None) is None
    assert {path.name for path in tmp_path.iterdir()} == {"a-0.json", "b-0.json", "c-0.json"}
    assert "1 of 3 runs left, about 0 minutes; now c, seed 0" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_claims_are_tried_each_beside_its_levels(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "examples/reproduce_claims.py", "--preset", "smoke"]
    result = subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["claims"]
    assert set(found) == set("12345")
    for claim in found.values():
        assert claim["verdict"] in ("holds", "partly", "fails")
        assert {"untrained", "chance"} <= claim["levels"].keys()
        assert all(isinstance(value, float) for value in (claim["figures"] | claim["levels"]).values())
    draw = [sys.executable, "-W", "error", "examples/claims_figures.py", "--preset", "smoke"]
    drawn = subprocess.run([*draw, str(tmp_path), str(tmp_path / "figures")], cwd=ROOT, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {f"claim{i}" for i in range(1, 6)}


def saccades_of(both: float, salient: float, uniform: float, untrained: float) -> dict[str, dict[str, float]]:
    """What one seed of the walls found."""
    names = {"top-1 %, z": 20.0, "top-1 %, mean of 5 z": 30.0, "pictures seen %": 50.0}
    names["untrained, top-1 %, state of 5"] = untrained
    states = zip(claims_runs.WALLS, (both, salient, uniform), strict=True)
    return {condition: names | {"top-1 %, state of 5": state} for condition, state in states}


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        ([(50, 35, 7, 10), (48, 33, 8, 10)], "holds"),
        ([(50, 35, 7, 10), (48, 47.5, 8, 10)], "partly"),  # less than a point in one seed
        ([(50, 35, 7, 49.5)], "partly"),  # an untrained network does as well
        ([(8, 8, 8, 10)], "fails"),
    ],
)
def test_a_claim_holds_if_every_part_of_its_rule_does_in_every_seed(
    seeds: list[tuple[float, float, float, float]], verdict: str
) -> None:
    runs = {seed: saccades_of(*numbers) for seed, numbers in enumerate(seeds)}
    found = claims_rules.summary(runs, paths=(3,))["claims"]
    assert set(found) == {"5"}  # of the others no run is done
    assert found["5"]["verdict"] == verdict
    assert found["5"]["levels"]["chance"] == 6.25
    assert found["5"]["seeds"] == len(seeds)
    assert found["5"]["figures"]["uniform"] == pytest.approx(np.mean([numbers[2] for numbers in seeds]))
    assert f"| **{verdict}** |" in claims_rules.report({"claims": found}, runs)


def test_a_seed_that_is_not_whole_is_left_out_of_the_verdict() -> None:
    whole, cut = saccades_of(50, 35, 7, 10), saccades_of(8, 8, 8, 10)
    del cut[claims_runs.WALLS[2]]
    assert claims_rules.summary({7: whole, 8: cut}, paths=(3,))["claims"]["5"]["seeds"] == 1


def test_a_row_of_the_comparison_has_a_rate_of_its_own_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--preset", "smoke", "--only", "conditional BYOL", "--seed", "3", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare_methods.py", *options])
    compare_methods.main()
    assert "2 of 2 runs left; now conditional BYOL, seed 3" in capsys.readouterr().out
    rates = json.loads((tmp_path / "rates.json").read_text(encoding="utf-8"))
    scores = rates["conditional BYOL"]["top-1 and R²"]
    assert [*rates] == ["conditional BYOL"]
    assert [*scores] == [str(rate) for rate in compare_runs.RATES]
    assert scores[str(rates["conditional BYOL"]["rate"])] == max(scores.values())
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*-3.json")]
    assert {run["rate"] for run in runs} == {rates["conditional BYOL"]["rate"]}
    assert {run["condition"] for run in runs} == {"conditional BYOL", "conditional BYOL, two pairs"}
    assert all({"top-1 %, z", "top-1 %, mean of 5 z", "R² relative", "MRR"} <= run["numbers"].keys() for run in runs)
    monkeypatch.setattr(compare_methods, "run", lambda *_: pytest.fail("run again"))
    compare_methods.main()
    assert "| conditional BYOL, two pairs | 0.8 |" in capsys.readouterr().out
    assert (tmp_path / "plane.png").stat().st_size > 10_000


@pytest.mark.nightly
def test_the_methods_are_compared_in_one_table(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "examples/compare_methods.py", "--preset", "smoke"]
    result = subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert set(found["table"]) == set(compare_runs.CONDITIONS)
    assert set(found["orderings"]) == set(compare_report.ORDERINGS)
    for name, columns in found["table"].items():
        assert bool(columns["MRR"]) == compare_runs.method_of(name).predicts
        assert all(len(columns[column]) == 1 for column in ("top-1 %, z", "R² relative", "R² individual"))


def test_an_ordering_is_judged_in_the_seeds_that_have_both_methods() -> None:
    def seed(conditional: float, byol: float) -> dict[str, dict[str, float]]:
        numbers = {"top-1 %, z": 50.0, "R² individual": 0.5}
        return {name: numbers | {"R² relative": r2} for name, r2 in (("conditional BYOL", conditional), ("BYOL", byol))}

    cut = seed(0.1, 0.3)
    del cut["BYOL"]
    found, text = compare_report.report({0: seed(0.3, 0.1), 1: seed(0.1, 0.3), 2: cut})
    words = "conditional BYOL is above BYOL in R² relative (0.31 / 0.12)"
    assert found["orderings"][words] == {"verdict": "partly", "seeds": [True, False]}
    assert f"| {words} | **partly** | yes, no |" in text
    assert "| BYOL | 0.8 | 50.0 ± 0.0 |" in text


def test_all_methods_of_a_seed_begin_with_the_same_encoder() -> None:
    first, *others = (
        compare_runs.new_model(name, seed=0, steps=1, paper=False).encoder.state_dict()
        for name in ("SimCLR", "BYOL, two pairs", compare_runs.SEQJEPA)
    )
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_more_pictures_than_a_wall_has_cells_are_refused() -> None:
    pictures = torch.zeros(2, 12, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"A wall has 9 cells and there are 12 pictures of an object; got hung=10"):
        wall.Walls.of(pictures, torch.arange(2), seed=0, hung=10)


def test_salient_fixations_see_more_of_the_pictures_and_inhibited_ones_most() -> None:
    pictures = torch.randint(256, (50, 8, 3, 32, 32), dtype=torch.uint8)
    walls, rows = wall.Walls.of(pictures, torch.arange(50), seed=0), torch.arange(100)
    seen = [walls.seen(rows, walls.look(rows, 5, gaze, torch.Generator().manual_seed(0))) for gaze in wall.GAZES]
    both, salient, uniform = seen
    assert uniform < 0.35 < 0.45 < salient < 0.62 < both < 0.8


@pytest.mark.parametrize("decorrelate", [0.0, 0.05])
def test_pairs_of_the_claims_are_views_and_the_actions_between_them(decorrelate: float) -> None:
    torch.manual_seed(0)
    group = Rotation3D()
    model = claims_model.with_pairs(claims_model.build(32, 16, 4, 10), group, decorrelate).eval()
    poses, views = torch.nn.functional.normalize(torch.randn(6, 4, 4), dim=-1), torch.rand(6, 4, 3, 32, 32)
    torch.manual_seed(1)
    out = model(views, group.actions(poses))
    torch.manual_seed(1)
    further = 1 + int(torch.randint(3, ()))
    distances = []
    for i in range(3):
        j = (i + further) % 4
        e = model.embed(group.actions(poses[:, [i, j]]))
        state = model.aggregate(model.encode(views[:, i : i + 1]), e[:, :0])
        distances.append(cosine_distance(model.predict(state, e[:, 0]), model.target(views[:, j])))
    torch.testing.assert_close(out.terms["pairs"], torch.cat(distances).mean(), atol=1e-5, rtol=0)
    plain = out.terms["distance"] + decorrelate * out.terms.get("covariance", torch.zeros(()))
    torch.testing.assert_close(out.loss, (plain + out.terms["pairs"]) / 2, atol=1e-6, rtol=0)


def test_plans_are_made_executed_and_drawn_and_a_model_that_was_kept_makes_them_again(tmp_path: Path) -> None:
    def told(*options: str) -> list[str]:
        command = [sys.executable, "-W", "error", "examples/plan.py", "--tasks", "8", "--output", str(tmp_path)]
        result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    *table, last = told("--steps", "2", "--objects", "32")
    rows = {line[:34].strip(): line[34:].split() for line in table if "," in line[34:]}
    assert {"doing nothing", "the turn of another task", "an untrained model's plan", "the plan"} <= rows.keys()
    assert rows["doing nothing"][:3] == rows["doing nothing"][3:]  # the light changes no angle
    assert 20 < float(rows["the plan"][0].rstrip(",")) < 150
    folder = tmp_path / "32-objects-2-steps-seed-0"
    assert last == f"In {folder}: plan-1.png, degrees-1.json (every task), model.pt."
    assert (folder / "plan-1.png").stat().st_size > 10_000
    degrees = json.loads((folder / "degrees-1.json").read_text(encoding="utf-8"))
    mean = np.mean(degrees["own light"]["the plan"])
    assert rows["the plan"][0] == f"{mean:.1f},"
    assert told("--weights", str(folder / "model.pt"))[:-1] == table


def test_latent_actions_are_learnt_in_three_ways_measured_and_drawn(tmp_path: Path) -> None:
    options = ["--steps", "2", "--output", str(tmp_path)]
    command = [sys.executable, "-W", "error", "examples/latent_actions.py", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if re.search(r"( +-?\d+\.\d\d){3}$", line)]
    table = {line[:34].strip(): [float(number) for number in line[34:].split()] for line in lines}
    assert len(table) == 13
    assert len(set(table["that far apart"])) == 1  # one encoder, one set of views
    assert 0.8 < table["that far apart"][0] < 1.1
    assert all(value < 0.2 for value in table["informative: R² of the turn"])  # nothing is learnt in two steps
    assert all(0 < value < 1 for name, values in table.items() if "MRR" in name for value in values)
    assert (tmp_path / "latent_actions.png").stat().st_size > 10_000


def test_the_angles_of_3diebench_ood_make_the_rotations_of_its_box() -> None:
    angles = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * math.pi - math.pi / 2
    outside = torch.stack([angles[:, 0] + math.pi, math.pi - angles[:, 1], angles[:, 2] + math.pi], dim=1)
    outside = (outside + math.pi) % (2 * math.pi) - math.pi
    assert (outside.abs() >= math.pi / 2).all()  # where 3DIEBench-OOD draws all three
    for axes in ("xyz", "XYZ"):  # extrinsic, intrinsic
        ours, theirs = (Rotation.from_euler(axes, part.numpy()).as_matrix() for part in (angles, outside))
        np.testing.assert_allclose(theirs, ours, atol=1e-12)


WITH_OPTIONS_IN_COMMON = [objects3d, plan, quickstart, robot_arm, saccades]


@pytest.mark.parametrize(
    ("module", "option", "said"),
    [
        (objects3d, "--steps=0", "--steps must be at least 1; got 0"),
        (objects3d, "--objects=99", "--objects must be at least 100; got 99"),
        (saccades, "--steps=0", "--steps must be at least 1; got 0"),
        (plan, "--horizon=0", "--horizon must be at least 1; got 0"),
        (plan, "--weights=nowhere.pt", "--weights nowhere.pt is not there"),
        *((module, "--threads=0", "--threads must be at least 1; got 0") for module in WITH_OPTIONS_IN_COMMON),
        *(
            (module, "--device=abacus", "argument --device: 'abacus' is not here: ")
            for module in WITH_OPTIONS_IN_COMMON
        ),
    ],
)
def test_wrong_settings_are_refused_on_the_command_line(
    module: Any, option: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", option])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("module", WITH_OPTIONS_IN_COMMON)
def test_help_shows_what_every_option_is_unless_it_is_given(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--help"])
    with pytest.raises(SystemExit):
        module.main()
    *_, options = capsys.readouterr().out.partition("options:")
    shown = re.split(r"\n  (?=-)", options)[1:]
    without = {"-h", "--compare", "--images", "--weights"}  # nothing stands in for them
    assert len(shown) > 5
    for option in shown:
        assert re.search(r"\[.+\]$", option.strip()) or option.split(",")[0].split()[0] in without, option


@pytest.mark.parametrize("politely", [False, True])
@pytest.mark.parametrize("stopped", [1, 4, 7])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    stopped: int, politely: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "SAVED", 3)
    steps, views = 8, torch.rand(30, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(folder: Path, stop: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        model = small.small_model(8, 2, steps)
        assert model.aggregator.dropout == 0.1  # what is drawn for it goes on as well
        recipe, rows, drawn = small.small_recipe(model, steps), saccades.Rows(30, 7, generator), 0

        def batch() -> ViewSequence:
            nonlocal drawn
            drawn += 1
            if drawn == stop and not politely:
                raise KeyboardInterrupt
            if drawn == stop:
                signal.raise_signal(signal.SIGINT)  # the step is done, and saved
            index = next(rows)
            return ViewSequence(views[index], torch.randn(len(index), 2, 2, generator=generator))

        kept = small.resumable(folder, model, recipe, rows=rows, draws=running.Draws(generator))
        small.train(model, batch, steps, "training", recipe, kept)
        return model.state_dict()

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stopped)
    saved = [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("step-*.pt")]
    assert saved == [f"step-{step:08d}.pt" for step in [stopped if politely else (stopped - 1) // 3 * 3] if step]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    after = run(tmp_path / "stopped", None)
    assert all(torch.equal(value, after[name]) for name, value in whole.items())


def test_rows_are_those_of_one_permutation_after_another() -> None:
    generator, reference = (torch.Generator().manual_seed(3) for _ in range(2))
    rows = saccades.Rows(10, 4, generator)
    for _ in range(3):
        order = torch.randperm(10, generator=reference)[:8]
        assert torch.equal(torch.cat([next(rows), next(rows)]), order)
    assert len(next(saccades.Rows(3, 4, generator))) == 3
    with pytest.raises(SystemExit, match=r"The run there is of 10 pictures, not of 9\. Give another --output"):
        saccades.Rows(9, 4, generator).load_state_dict(rows.state_dict())


@pytest.mark.parametrize(
    ("module", "options", "folder"),
    [
        (plan, ["--steps=2", "--objects=32"], "32-objects-2-steps-seed-0"),
        (objects3d, ["--steps=2", "--objects=100"], "cpu-100-objects-2-steps-seed-0"),
        (saccades, ["--steps=2"], "cpu-digits-saliency-2-steps-seed-0"),
    ],
)
def test_ctrl_c_ends_with_where_things_are_and_the_command_that_goes_on(
    module: Any, options: list[str], folder: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [f"examples/{module.__name__}.py", *options, "--output", str(tmp_path / "a b")])
    if module is saccades:
        monkeypatch.setattr(pictures, "VARIANTS", 1)
    train, place = small.train, tmp_path / "a b" / folder

    def stopped_in_the_first_step(model: Any, batch: Any, *rest: Any) -> Any:
        def stopping() -> Any:
            signal.raise_signal(signal.SIGINT)
            return batch()

        return train(model, stopping, *rest)

    for stand_in, words in (
        (interrupted, "The same command begins anew: no step is kept yet"),
        (stopped_in_the_first_step, f"The same command goes on from the last checkpoint in {place}"),
    ):
        monkeypatch.setattr(module, "train", stand_in)
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == 130
        said = capsys.readouterr().out
        assert f"Stopped. {words}:\n" in said
        assert f"    python examples/{module.__name__}.py {' '.join(options)} --output '{tmp_path / 'a b'}'\n" in said
    assert [path.name for path in place.rglob("step-*.pt")] == ["step-00000001.pt"]
