"""What only a GPU can show; skipped without one."""

import copy
from typing import Any

import pytest
import torch

from seqjepa import CosineSchedule, EMATarget, SeqJEPALoss, VarianceCovariance
from tests.builders import TinyEncoder, sequence, tiny_model

pytestmark = pytest.mark.gpu


def test_the_gpu_agrees_with_the_cpu() -> None:
    model = tiny_model().eval()
    views, actions = sequence()
    expected = model(views, actions)
    got = copy.deepcopy(model).cuda()(views.cuda(), actions.cuda())
    for name in ("loss", "prediction", "target", "state", "z"):
        torch.testing.assert_close(getattr(got, name).cpu(), getattr(expected, name), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_a_training_step_never_waits_for_the_gpu(masked: bool) -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder, CosineSchedule(0.9, 1.0, 10), buffers="ema")
    loss = SeqJEPALoss(regularizer=VarianceCovariance())
    model = tiny_model(encoder=encoder, target=target, loss=loss).cuda()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    views, actions = (x.cuda() for x in sequence())
    mask = torch.ones(4, 3, dtype=torch.bool, device="cuda") if masked else None

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            out = model(views, actions, mask)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target()

    step()  # the libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_compiled_step_trains_in_bfloat16() -> None:
    model = tiny_model().cuda().to(memory_format=torch.channels_last)
    compiled: Any = torch.compile(model, fullgraph=True)
    views, actions = (x.cuda() for x in sequence())
    with torch.autocast("cuda", torch.bfloat16):
        out = compiled(views, actions)
    out.loss.backward()
    model.update_target()
    assert out.loss.isfinite()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_attention_runs_in_a_fused_kernel() -> None:
    model = tiny_model().cuda()
    views, actions = (x.cuda() for x in sequence())
    fused = [torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION]
    with torch.autocast("cuda", torch.bfloat16), torch.nn.attention.sdpa_kernel(fused):
        model(views, actions).loss.backward()
