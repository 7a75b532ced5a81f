"""Lightning's Trainer against the plain loop, loss by loss."""

import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install 'seqjepa[lightning]'")

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from seqjepa import EMATarget
from seqjepa.data import ViewLoader
from seqjepa.distributed import gather_objects
from seqjepa.interop.lightning import SeqJEPAModule
from seqjepa.training import seed_step, weight_groups
from tests.baselines.builders import tiny
from tests.interop.loops import BATCHES, RATE, STEPS, assert_same, build, plain
from tests.ranks import on_ranks

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


ROOT = Path(__file__).parent.parent.parent


class Recorded(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["out"].loss))
        assert not outputs["out"].z.requires_grad
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trainer(**options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, "gradient_clip_val": 1.0, "devices": 1} | options
    return Trainer(**quiet, **options)


def module(**options: Any) -> tuple[SeqJEPAModule, ViewLoader]:
    model, loader = build()
    return SeqJEPAModule(model, rate=RATE, **options), loader


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trains_as_the_plain_loop_does(accumulate: int) -> None:
    expected, model = plain(accumulate)
    ours, loader = module()
    seen = Recorded()
    run = trainer(max_steps=STEPS, accumulate_grad_batches=accumulate, callbacks=[seen])
    run.fit(ours, loader)
    assert len(seen.losses) == STEPS * accumulate
    assert seen.losses == pytest.approx(expected, abs=1e-6)
    assert ours.model.target.step == run.global_step == STEPS
    assert_same(ours.model, model)
    firsts = seen.logged[::accumulate]
    assert [values["rate"] for values in firsts] == pytest.approx([RATE(step) for step in range(STEPS)])
    momentum = model.target.momentum
    assert [values["momentum"] for values in firsts] == pytest.approx([momentum(step) for step in range(STEPS)])


@pytest.mark.parametrize("length", [{"max_steps": STEPS}, {"max_epochs": STEPS // BATCHES}], ids=["steps", "epochs"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_fit_goes_on_as_if_it_had_not_stopped(tmp_path: Path, length: dict[str, int], stop: int) -> None:
    expected, model = plain()
    ours, loader = module()
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=stop, save_top_k=-1, filename="{step}")
    trainer(max_steps=stop, callbacks=[keeper], enable_checkpointing=True).fit(ours, loader)
    (file,) = tmp_path.glob("*.ckpt")
    again, loader = module()
    seen = Recorded()
    trainer(**length, callbacks=[seen]).fit(again, loader, ckpt_path=file)
    assert seen.losses == pytest.approx(expected[stop:], abs=1e-6)
    assert_same(again.model, model)


@pytest.mark.parametrize("when", [{}, {"save_on_train_epoch_end": True}], ids=["default", "epoch end"])
def test_a_fit_resumed_between_two_epochs_begins_with_the_next(tmp_path: Path, when: dict[str, bool]) -> None:
    expected, model = plain()
    ours, loader = module()
    keeper = ModelCheckpoint(tmp_path, filename="{epoch}", **when)
    trainer(max_epochs=1, callbacks=[keeper], enable_checkpointing=True).fit(ours, loader)
    (file,) = tmp_path.glob("*.ckpt")
    again, loader = module()
    seen = Recorded()
    trainer(max_epochs=2, callbacks=[seen]).fit(again, loader, ckpt_path=file)
    assert seen.losses == pytest.approx(expected[BATCHES:], abs=1e-6)
    assert_same(again.model, model)


def test_validation_leaves_the_run_as_it_is_and_the_target_in_place() -> None:
    expected, model = plain()
    ours, loader = module()
    _, validation = build()
    seen = Recorded()
    run = trainer(max_steps=STEPS, callbacks=[seen], val_check_interval=2)
    run.fit(ours, loader, validation)
    assert seen.losses == pytest.approx(expected, abs=1e-6)
    assert 0 < float(run.callback_metrics["val_loss"]) < 2
    assert_same(ours.model, model)


@pytest.mark.parametrize("name", ["SimCLR", "BYOL", "SIE"])
def test_a_baseline_is_trained_and_validated_too(name: str) -> None:
    _, loader = build()
    method = tiny(name, encoder=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8)), action_dim=1)
    seen = Recorded()
    run = trainer(max_steps=4, callbacks=[seen], val_check_interval=2)
    run.fit(SeqJEPAModule(method, rate=RATE), loader, build()[1])
    assert len(seen.losses) == 4
    assert float(run.callback_metrics["val_loss"]) > 0
    if name == "BYOL":
        assert method.target.step == 4


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_move_the_target(fused: bool) -> None:
    ours, loader = module(optimizer=lambda groups: torch.optim.AdamW(groups, lr=1.0, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)  # the first gradients overflow
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    clip = None if fused else 1.0
    run = trainer(max_steps=3, plugins=[precision], gradient_clip_val=clip)
    run.fit(ours, loader)
    assert scaler.get_scale() < 2.0**126
    moved = [int(state["step"]) for state in run.optimizers[0].state.values()]
    assert run.global_step == 3
    assert ours.model.target.step == (max(moved) if moved else 0) < 3


class ByHand(SeqJEPAModule):
    """Manual optimisation: an optimiser for the encoder, which takes two steps a batch, and one for the rest."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, rate=1e-3)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        encoder = list(self.model.encoder.parameters())
        rest = [*self.model.predictor.parameters(), *self.model.aggregator.parameters()]
        return torch.optim.SGD(rest, lr=1e-3), torch.optim.SGD(encoder, lr=1e-3)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        rest, encoder = self.optimizers()
        for optimizer in (rest, encoder, encoder):
            optimizer.zero_grad()
            self.manual_backward(self(batch).loss)
            optimizer.step()


def test_under_manual_optimisation_the_target_follows_the_encoders_optimiser() -> None:
    model, loader = build()
    trainer(max_epochs=1, gradient_clip_val=None).fit(ByHand(model), loader)
    assert model.target.step == 2 * BATCHES


def test_a_second_fit_moves_the_target_once_a_step() -> None:
    model, loader = build()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=1e-3)

    class Same(SeqJEPAModule):
        def configure_optimizers(self) -> Any:
            return optimizer

    ours = Same(model, rate=1e-3)
    for fits in (1, 2):
        trainer(max_epochs=1).fit(ours, loader)
        assert model.target.step == fits * BATCHES
    assert isinstance(model.target, EMATarget)
    assert not optimizer._optimizer_step_post_hooks


def test_without_lightning_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "seqjepa.interop.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ImportError, match=r"pip install 'seqjepa\[lightning\]'"):
        importlib.import_module("seqjepa.interop.lightning")


def _two_ranks(rank: int, world: int) -> None:
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from torch.nn.parallel import DistributedDataParallel

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29512", "GROUP_RANK": "0"}
    model, loader = build(batch_size=2)
    expected, ddp = [], DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(weight_groups(model, 1e-3), lr=1.0)
    for step, (views, actions, *_) in enumerate(loader):
        seed_step(0, step)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = RATE(step)
        loss = ddp(views, actions).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.update_target()
        expected.append(loss.item())
    ours, _ = module()
    loader.set_epoch(0)
    seen = Recorded()
    run = trainer(max_epochs=1, callbacks=[seen], strategy="ddp", devices=2, plugins=[TorchElasticEnvironment()])
    run.fit(ours, loader)
    assert run.world_size == world
    assert seen.losses == pytest.approx(expected, abs=1e-6)
    assert_same(ours.model, model)
    assert len(set(gather_objects(seen.losses[0]))) == world  # each its own images


@pytest.mark.nightly  # each process imports Lightning anew
def test_two_processes_of_lightning_train_as_ddp_does() -> None:
    on_ranks(_two_ranks)


STARTED_BY_LIGHTNING = """
import json, sys
import lightning, torch
from seqjepa import SeqJEPA
from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.interop.lightning import SeqJEPAModule

torch.manual_seed(0)
images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
loader = ViewLoader(list(zip(images, range(32))), RotatedViews(num_views=3), batch_size=4)
encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
model = SeqJEPA.from_encoder(encoder, action_dim=1, view_shape=(3, 8, 8), heads=2)

class Seen(SeqJEPAModule):
    labels = []
    def training_step(self, batch, batch_idx):
        self.labels += batch.labels.tolist()
        return super().training_step(batch, batch_idx)

trainer = lightning.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Seen(model, rate=1e-3), loader)
weights = [p.tolist() for p in model.target.parameters()]
with open(f"{sys.argv[1]}/{trainer.global_rank}.json", "w") as file:
    json.dump([Seen.labels, model.target.step, weights], file)
"""


@pytest.mark.nightly
def test_a_loader_built_before_lightning_starts_its_processes_gives_each_its_share(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STARTED_BY_LIGHTNING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(script), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    (one, steps, weights), other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert sorted(one + other[0]) == list(range(32))
    assert (steps, weights) == (4, other[2])
