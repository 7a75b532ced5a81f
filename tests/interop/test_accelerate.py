"""The Accelerate example against the plain loop, loss by loss."""

import sys
from pathlib import Path
from typing import Any

import pytest

accelerate = pytest.importorskip("accelerate", reason="needs Accelerate: pip install accelerate")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from accelerate_loop import train  # noqa: E402

from tests.interop.loops import RATE, STEPS, assert_same, build, plain  # noqa: E402


def run(accumulate: int = 1, steps: int = STEPS, **options: Any) -> tuple[list[float], Any]:
    model, loader = build()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    losses: list[float] = []
    train(accelerator, model, loader, steps=steps, rate=RATE, report=lambda step, loss: losses.append(loss), **options)
    accelerator.free_memory()
    return losses, model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate_trains_as_the_plain_loop_does(accumulate: int) -> None:
    expected, model = plain(accumulate)
    means = [sum(expected[i : i + accumulate]) / accumulate for i in range(0, len(expected), accumulate)]
    losses, ours = run(accumulate)
    assert losses == pytest.approx(means, abs=1e-6)
    assert ours.target.step == STEPS
    assert_same(ours, model)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_accelerate_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, stop: int) -> None:
    expected, model = plain()
    run(steps=stop, run=tmp_path)
    losses, ours = run(run=tmp_path, resume=True)
    assert losses == pytest.approx(expected[stop:], abs=1e-6)
    assert_same(ours, model)
