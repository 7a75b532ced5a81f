"""The transformers.Trainer example against the plain loop, loss by loss."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
pytest.importorskip("accelerate", reason="transformers.Trainer needs Accelerate: pip install accelerate")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from hf_trainer import SeqJEPATrainer, optimizers_of  # noqa: E402
from small import small_model  # noqa: E402

from tests.interop.loops import RATE, STEPS, assert_same, build, plain  # noqa: E402


class Recorded(SeqJEPATrainer):
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), float(loss)]  # divided by the batches that are accumulated
        return loss


def run(
    folder: Path, accumulate: int = 1, steps: int = STEPS, resume: bool = False, model: Any = None
) -> tuple[list[float], Any]:
    built, loader = build()
    model = model or built
    args = transformers.TrainingArguments(
        str(folder), max_steps=steps, gradient_accumulation_steps=accumulate, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, per_device_train_batch_size=4, save_steps=steps, seed=0,
    )  # fmt: skip
    trainer = Recorded(model, args, loader, optimizers_of(model, RATE))
    trainer.train(resume_from_checkpoint=resume)
    return trainer.losses, model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_trains_as_the_plain_loop_does(tmp_path: Path, accumulate: int) -> None:
    expected, model = plain(accumulate, by_groups=False)
    losses, ours = run(tmp_path, accumulate)
    assert [accumulate * loss for loss in losses] == pytest.approx(expected, abs=1e-6)
    assert ours.target.step == STEPS
    assert_same(ours, model)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_trainer_goes_on_as_if_it_had_not_stopped(tmp_path: Path, stop: int) -> None:
    expected, model = plain(by_groups=False)
    run(tmp_path, steps=stop)
    losses, ours = run(tmp_path, resume=True)
    assert losses == pytest.approx(expected[stop:], abs=1e-6)
    assert_same(ours, model)


def test_an_epoch_that_holds_no_whole_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="An epoch holds whole optimiser steps; got 4 batches and 3"):
        run(tmp_path, accumulate=3)


def test_the_checkpoint_of_trainer_is_a_state_dict_of_the_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _, ours = run(tmp_path, steps=2, model=small_model(8, 1, 2))
    again = small_model(8, 1, 2)
    assert not all(value.is_contiguous() for value in again.state_dict().values())  # channels-last
    again.load_state_dict(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))
    assert again.target.step == 2
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())
