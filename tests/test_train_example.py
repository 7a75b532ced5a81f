"""The recipe: what it leaves, what it refuses, and that a killed run ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import seqjepa.training
from seqjepa import SeqJEPA, ViewSequence

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--objects", "24", "--pool", "4", "--size", "16", "--batch-size", "8"),
    *("--log-every", "1", "--monitor-every", "4", "--checkpoint-every", "1"),
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`recipe("--steps", "3")` → exit code; an error's words go where they would go."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["examples/train.py", *options])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "examples" / "train.py"), run_name="__main__")
        if isinstance(end.value.code, str):
            print(end.value.code, file=sys.stderr)
            return 1
        return int(end.value.code or 0)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert all(line.pop("views_per_second") > 0 for line in found)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_leaves_its_settings_metrics_checkpoints_and_model(
    recipe: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(*SMALL, "--steps", "5", "--run", "a", "--profile", "--accumulate", "2") == 0
    assert "5 steps are done" in capsys.readouterr().out
    folder = tmp_path / "a"
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["data"], settings["steps"], settings["precision"]) == ("objects", 5, "float32")
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all({"loss", "rate", "momentum", "gradient", "probe", "skipped"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "monitor.verdict" in line] == [4]
    assert lines[-1]["momentum"] == 1
    assert lines[0]["rate"] < lines[2]["rate"] > lines[4]["rate"]
    kept = sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))
    assert kept == ["step-00000004.pt", "step-00000005.pt"]
    encoder = runpy.run_path(str(ROOT / "examples" / "small.py"))["small_convnet"](16)
    assert SeqJEPA.from_pretrained(folder / "model", encoder=encoder).target.step == 5
    assert json.loads((folder / "trace-0.json").read_text())["traceEvents"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_prints_the_command_that_goes_on_to_the_same_bits(
    number: signal.Signals, recipe: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = [*SMALL, "--steps", "6", "--checkpoint-every", "100"]
    assert recipe(*options, "--run", "straight") == 0
    real = seqjepa.training.seed_step

    def interrupted(seed: int, step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), number)
        real(seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(seqjepa.training, "seed_step", interrupted)
        assert recipe(*options, "--run", "cut") == 128 + number
    said = capsys.readouterr().out
    assert "Stopped at step 4. To go on:" in said
    program, *rest = shlex.split(said.splitlines()[-1])
    assert (program, rest[0]) == ("python", str(ROOT / "examples" / "train.py"))
    assert not (tmp_path / "cut" / "model").exists()
    assert recipe(*rest[1:]) == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "straight")
    assert all(torch.equal(v, weights(tmp_path / "cut")[k]) for k, v in weights(tmp_path / "straight").items())


class Spoilt:
    """A loader one of whose batches is infinite."""

    def __init__(self, loader: Any, number: int) -> None:
        self.loader, self.number, self.count = loader, number, 0
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __iter__(self) -> Iterator[ViewSequence]:
        for batch in self.loader:
            self.count += 1
            yield batch._replace(views=batch.views * torch.inf) if self.count == self.number else batch


@pytest.fixture
def _spoilt(recipe: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    import sources

    real = sources.open_source

    def spoilt(settings: Any, device: torch.device) -> Any:
        source: Any = real(settings, device)
        source.loader = Spoilt(source.loader, 4)
        return source

    monkeypatch.setattr(sources, "open_source", spoilt)


@pytest.mark.usefixtures("_spoilt")
def test_a_batch_of_infinities_is_skipped_counted_and_leaves_no_trace(
    recipe: Callable[..., int], tmp_path: Path
) -> None:
    assert recipe(*SMALL, "--steps", "6", "--run", "a", "--accumulate", "2") == 0
    lines = metrics(tmp_path / "a")
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1, 1, 1]  # the fourth batch is of the second step
    assert lines[1]["loss"] is None
    assert all(line["loss"] is not None for line in lines[2:])
    assert all(w.isfinite().all() for w in weights(tmp_path / "a").values())  # running statistics too


@pytest.mark.usefixtures("_spoilt")
def test_or_it_stops_the_run_by_name(
    recipe: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(*SMALL, "--steps", "6", "--run", "a", "--nonfinite", "stop", "--seed", "3") == 1
    said = capsys.readouterr().err
    assert "error: loss nan, gradient nan; step=3, seed=3; go on from a/checkpoints/step-00000003.pt" in said
    assert recipe(*SMALL, "--steps", "6", "--run", "b", "--nonfinite", "stop", "--checkpoint-every", "5") == 1
    assert "gradient nan; step=3, seed=0; nothing was saved yet" in capsys.readouterr().err


def test_settings_that_may_change_take_effect_and_others_are_refused(
    recipe: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(*SMALL, "--steps", "2", "--run", "a") == 0
    capsys.readouterr()

    def refused(words: str, *options: str) -> None:
        before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
        assert recipe(*SMALL, "--run", "a", *options) != 0
        assert words in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before

    refused("a holds a run already. Go on with it by --resume auto", "--steps", "4")
    refused("a run of another configuration: encoder was 'small' and is 'resnet18', seed was 0 and is 1",
            "--steps", "4", "--encoder", "resnet18", "--seed", "1", "--resume", "auto")  # fmt: skip
    refused("a has come to step 2, and --steps 1 is below", "--steps", "1", "--resume", "auto")
    with pytest.warns(UserWarning, match=r"weight_decay 0\.1 → 0\.2"):
        assert recipe(*SMALL, "--run", "a", "--resume", "--steps", "4", "--weight-decay", "0.2") == 0
    said = capsys.readouterr().out
    assert "From now on: steps was 2 and is 4." in said
    assert [line["step"] for line in metrics(tmp_path / "a")] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["steps"] == 4


@pytest.mark.parametrize(("words", "options"), [
    ("is the name of a dataset or a folder of images; 'object' is neither. Near matches: objects", "--data object"),
    ("has no model 'resnet19'. Near matches: ", "--encoder resnet19"),
    ("--resume of nothing: none holds no checkpoint", "--run none --resume"),
    ("An epoch needs at least one batch; 24 items over 1 rank are 24 each, and batch_size is 25", "--batch-size 25"),
    ("invalid choice: 'turned'", "--sampler turned"),
    ("--seed must be at least 0, and at most 9223372036854775807; got 9223372036854775808", f"--seed {2**63}"),
    ("--steps must be at least 1, and finite; got 0", "--steps 0"),
    ("--rate must be at least 0, and finite; got nan", "--rate nan"),
    ("--clip must be at least 0, and finite; got inf", "--clip inf"),
    ("error: ", "--device cdua"),
    ("Not a directory", "--run empty/file"),
    ("broken/config.json cannot be read as JSON", "--run broken --resume auto"),
    ("empty holds no image", "--data empty"),
    ("unknown setting 'bath_size'; near: batch_size", "--config wrong.json"),
    ("steps cannot be '5'", "--config text.json"),
    ("cannot be read as JSON", "--config none.json"),
])  # fmt: skip
def test_bad_input_is_refused_in_words_and_nothing_is_written(
    words: str, options: str, recipe: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").write_text("no folder")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"steps')
    (tmp_path / "wrong.json").write_text('{"bath_size": 3}')
    (tmp_path / "text.json").write_text('{"steps": "5"}')
    there = sorted(tmp_path.rglob("*"))
    assert recipe(*SMALL, "--run", "a", *options.split()) != 0
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == there


def test_any_data_any_sampler_and_any_encoder(recipe: Callable[..., int], tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("beds", "sofas"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = noise.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    for number, options in enumerate([
        "--data digits --size 16 --precision bfloat16", "--data images --sampler augmented --size 32 --workers 1",
        "--data images/beds --sampler saccades --size 32 --batch-size 2 --no-actions --no-channels-last",
        "--data images --size 32 --encoder vit_tiny_patch16_224",
    ]):  # fmt: skip
        folder = tmp_path / f"run{number}"
        assert recipe("--steps", "2", "--batch-size", "4", "--run", str(folder), *options.split()) == 0
        (last,) = metrics(folder)
        assert ("probe" in last) == ("beds" not in options)


def test_help_names_every_setting_with_its_default(
    recipe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--batch-size INT sources in a batch, on each rank [64]" in said
    assert "--sampler {rotated,augmented,saccades}" in said
    assert "--compile, --no-compile compile the model [no]" in said


def test_the_loop_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "examples" / "train.py").read_text(encoding="utf-8").splitlines()) < 200


# --------------------------------------------------------------------------------------------------------- Killed runs


def killed(folder: Path, ranks: int, moments: list[str], *options: str) -> list[list[int]]:
    """How each attempt ended; the last one whole."""
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), str(ranks), json.dumps(moments), *SMALL, *options]
    command += ["--run", str(folder), "--resume", "auto"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line)["codes"] for line in result.stdout.splitlines() if line.startswith('{"moment"')]


def assert_same_run(folder: Path, straight: Path) -> None:
    """Weights, target, statistics, and all that was logged, bit by bit."""
    mine, theirs = weights(folder), weights(straight)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert metrics(folder) == metrics(straight)
    assert not list((folder / "checkpoints").glob(".*.tmp"))


MOMENTS = ["write 2", "step 4", "fsync 3", "replace 2", "replaced 2"]


def test_a_run_killed_in_steps_and_in_saves_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    assert killed(tmp_path / "straight", 1, [], "--steps", "9") == [[0]]
    ends = killed(tmp_path / "killed", 1, MOMENTS, "--steps", "9", "--workers", "2")
    assert ends == [[-signal.SIGKILL]] * 5 + [[0]]
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


def test_so_does_one_on_two_processes(tmp_path: Path) -> None:
    assert killed(tmp_path / "straight", 2, [], "--steps", "5", "--batch-size", "4") == [[0, 0]]
    ends = killed(tmp_path / "killed", 2, ["step 2", "write 2"], "--steps", "5", "--batch-size", "4")
    assert all(-signal.SIGKILL in codes for codes in ends[:-1])
    assert ends[-1] == [0, 0]
    assert len(ends) == 3
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


@pytest.mark.nightly
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_killed_at_random_moments_five_times_over(ranks: int, workers: int, trial: int, tmp_path: Path) -> None:
    draw = random.Random(100 * trial + 10 * ranks + workers)
    places: list[Callable[[], str]] = [
        lambda: f"seconds {draw.uniform(0.5, 6):.2f}", lambda: f"step {draw.randrange(30)}",
        lambda: f"{draw.choice(['write', 'fsync', 'replace', 'replaced'])} {draw.randrange(1, 5)}",
    ]  # fmt: skip
    moments = [draw.choice(places)() for _ in range(8)]
    options = ["--steps", "30", "--batch-size", str(8 // ranks)]
    killed(tmp_path / "straight", ranks, [], *options)
    killed(tmp_path / "killed", ranks, moments, *options, "--workers", str(workers))
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
DYING = """
import os, sys, runpy
sys.path[:0] = [{tests!r}, {examples!r}]
import killed
moments = ["step 3", "write 2", "replaced 2"]
attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
if attempt < len(moments) and rank == (1 if moments[attempt].startswith("step") else 0):
    killed.arm(moments[attempt])
sys.argv[0] = {examples!r} + "/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.nightly
def test_torchrun_restarts_two_processes_until_the_run_is_done(tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(tests=str(ROOT / "tests"), examples=str(ROOT / "examples")))
    options = [*SMALL, "--steps", "8", "--batch-size", "4", "--resume", "auto"]
    port = "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"
    for name, program in (("straight", str(ROOT / "examples" / "train.py")), ("killed", str(script))):
        command = [*TORCHRUN, *port, "--", program, *options, "--run", str(tmp_path / name)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


@pytest.mark.nightly
def test_a_rank_that_dies_takes_the_run_down_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(tests=str(ROOT / "tests"), examples=str(ROOT / "examples")))
    options = [
        *SMALL,
        "--steps",
        "100000",
        "--batch-size",
        "4",
        "--checkpoint-every",
        "2",
        "--run",
        str(tmp_path / "run"),
    ]
    torchrun = [*TORCHRUN[:-1], "0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--"]
    # The run would take hours, and the process group waits for half an hour.
    result = subprocess.run([*torchrun, str(script), *options], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode != 0
    assert "Signal 9 (SIGKILL)" in result.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000002.pt"]


@pytest.mark.nightly
@pytest.mark.parametrize("page", ["many-gpus", "long-runs"])
def test_the_lines_for_torchrun_and_slurm_run_as_written_on_two_processes(page: str, tmp_path: Path) -> None:
    """With smaller data, and SLURM's two commands put in their places: this machine is its one node."""
    text = (ROOT / "docs" / "guides" / f"{page}.md").read_text(encoding="utf-8")
    smaller = "--data digits --size 16 --batch-size 8 --steps 3 --observed 2"
    lines = [
        block.replace("--data imagenet --root data --size 128 --encoder resnet18", smaller).replace(
            "-node 8", "-node 2"
        )
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
        if "imagenet" in block
    ]
    assert lines
    for name, content in {"srun": 'exec "$@"', "scontrol": "echo 127.0.0.1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "PATH": path}
    for line in lines:
        result = subprocess.run(
            ["bash", "-ec", line], cwd=tmp_path, env=os.environ | slurm, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "runs" / "b" / "model" / "model.safetensors").exists()
        shutil.rmtree(tmp_path / "runs")
