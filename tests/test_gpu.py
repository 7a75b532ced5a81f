"""What only a GPU can show; skipped without one."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from seqjepa import CosineSchedule, EMATarget, SeqJEPALoss, VarianceCovariance
from seqjepa.data import AugmentedViews, RotatedViews, SaccadeViews
from seqjepa.groups import Hue, Product, Rotation3D
from tests.builders import TinyEncoder, sequence, tiny_model

pytestmark = pytest.mark.gpu


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    with waiting_is_an_error():
        step()


@pytest.mark.parametrize("on", ["cpu", "cuda", None])
@pytest.mark.parametrize("sampler", [
    AugmentedViews.cifar(), AugmentedViews.cifar(frame="image", interpolation="bilinear"), RotatedViews(),
    RotatedViews(shift=0.1, scale=(0.5, 2.0), size=12, border="inside"), SaccadeViews(num_views=5, fovea=8),
    SaccadeViews(num_views=3, fovea=8, inhibition="round", radius=40, center_bias=0.3),
    SaccadeViews(num_views=3, fovea=8, scales=(1, 2), scales_as="views"),
], ids=repr)  # fmt: skip
def test_a_sampler_never_waits_for_the_gpu(sampler: Any, on: str | None) -> None:
    images = torch.rand(16, 3, 32, 32, device="cuda")
    given = {"saliency": torch.rand(16, 32, 32, device="cuda")} if isinstance(sampler, SaccadeViews) else {}
    generator = None if on is None else torch.Generator(on).manual_seed(0)
    sampler(images, generator=generator, **given)  # the libraries set themselves up
    with waiting_is_an_error():
        batch = sampler(images, generator=generator, **given)
        path = batch.group.path_composition(batch.actions)
        back = batch.group.compose(path, batch.group.inverse(path))
        far = batch.group.distance(back, batch.group.identity(device="cuda"))
        if not isinstance(sampler, SaccadeViews):
            sampler.render(images, batch.parameters)
        elif sampler.scales_as == "channels":
            sampler.at(images, batch.parameters)
    assert far.max() < 1e-3
    assert batch.views.isfinite().all()


def test_paths_of_rotations_never_wait_for_the_gpu() -> None:
    group = Product({"pose": Rotation3D(), "hue": Hue()})
    t = torch.cat([Rotation3D.random(8, 4), torch.rand(8, 4, 1)], dim=-1).cuda()
    with waiting_is_an_error():
        whole = group.path_composition(group.actions(t))
        far = group.distance(whole, group.relative(t[:, 0], t[:, -1]))
    assert far.max() < 1e-3


def test_an_image_that_breaks_a_rule_on_the_gpu_gives_views_that_are_no_numbers() -> None:
    images = torch.rand(4, 3, 32, 32, device="cuda")
    images[2, 0, 3, 4] = 255.0
    for sampler in (AugmentedViews.cifar(), RotatedViews(), SaccadeViews(num_views=3, fovea=8)):
        lost = sampler(images).views.isnan().flatten(1)
        assert lost.all(dim=1).tolist() == lost.any(dim=1).tolist() == [False, False, True, False]


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


def test_a_captured_step_trains_as_an_eager_one() -> None:
    """Views in, weights and target moved: one CUDA graph, replayed; the momentum's schedule goes on inside it."""

    def prepared() -> tuple[Any, Any]:
        torch.manual_seed(0)
        encoder = TinyEncoder()
        model = tiny_model(encoder=encoder, target=EMATarget(encoder, CosineSchedule(0.5, 1.0, 10)), dropout=0.0).cuda()
        weights = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(weights, lr=1e-2, capturable=True)

    views, actions = (x.cuda() for x in sequence())

    def step(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(views, actions).loss.backward()
        optimizer.step()
        model.update_target()

    captured, optimizer = prepared()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the libraries set themselves up
        for _ in range(3):
            step(captured, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # runs nothing
        step(captured, optimizer)
    for _ in range(4):
        graph.replay()
    eager, optimizer = prepared()
    for _ in range(7):
        step(eager, optimizer)
    assert captured.target.step == eager.target.step == 7
    for mine, theirs in zip(captured.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_attention_runs_in_a_fused_kernel() -> None:
    model = tiny_model().cuda()
    views, actions = (x.cuda() for x in sequence())
    fused = [torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION]
    with torch.autocast("cuda", torch.bfloat16), torch.nn.attention.sdpa_kernel(fused):
        model(views, actions).loss.backward()
