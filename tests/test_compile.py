"""torch.compile without a graph break, and torch.export of the ways to infer."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqjepa import (
    CausalAggregator,
    EMATarget,
    GaussianBottleneck,
    InverseModel,
    NoActions,
    OnlineTarget,
    SeqJEPA,
    SeqJEPALoss,
    SIGReg,
    StopGradientTarget,
    VarianceCovariance,
    VectorQuantizer,
    pair_loss,
    rollout_loss,
)
from seqjepa.groups import Rotation3D, Translation
from tests.baselines.builders import tiny
from tests.builders import TinyEncoder, sequence, tiny_model


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def variants() -> dict[str, SeqJEPA]:
    encoder = TinyEncoder()
    return {
        "paper": tiny_model(dropout=0.0),
        "ablation": tiny_model(embedder=NoActions(), dropout=0.0),
        "copied statistics": tiny_model(encoder=encoder, target=EMATarget(encoder, 0.9, buffers="ema"), dropout=0.0),
        "no ema": tiny_model(
            encoder=encoder,
            target=StopGradientTarget(encoder),
            loss=SeqJEPALoss(regularizer=VarianceCovariance()),
            dropout=0.0,
        ),
        "causal": tiny_model(aggregator=CausalAggregator(12, heads=2, window=2, rotary=10.0, dropout=0.0)),
        "online": tiny_model(
            encoder=encoder, target=OnlineTarget(encoder), loss=SeqJEPALoss(regularizer=SIGReg()), dropout=0.0
        ),
    }


def assert_one_training_step_agrees(model: SeqJEPA, compile: Callable[[SeqJEPA], Any], masked: bool) -> None:
    views, actions = sequence()
    mask = torch.tensor([[False, True, True], [True] * 3, [True, True, False], [True] * 3]) if masked else None
    twin = copy.deepcopy(model)
    compiled = compile(twin)
    torch.manual_seed(0)
    expected = model(views, actions, mask)
    torch.manual_seed(0)  # one draw of what the loss draws
    got = compiled(views, actions, mask)
    for name in ("loss", "prediction", "target", "state", "z"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
    expected.loss.backward()
    got.loss.backward()
    for (name, mine), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None, name
        elif name != "aggregator.norm.bias":  # analytically zero
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3)
    twin.update_target()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", list(variants()))
def test_compiled_equals_eager_without_a_graph_break(name: str, masked: bool) -> None:
    assert_one_training_step_agrees(
        variants()[name], lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"), masked
    )


def test_it_compiles_under_autocast_with_dropout_and_in_place() -> None:
    model = tiny_model()
    model.compile(fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        model(*sequence()).loss.backward()
    assert not any("_orig_mod" in key for key in model.state_dict())
    model = tiny_model().to(torch.bfloat16)
    model.compile(fullgraph=True, backend="aot_eager")
    model(*sequence(dtype=torch.bfloat16)).loss.backward()


def test_other_lengths_and_batches_go_through_one_compiled_model() -> None:
    model = tiny_model().eval()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch, observed in ((4, 3), (2, 3), (5, 1)):
        views, actions = sequence(batch, observed)
        torch.testing.assert_close(compiled(views, actions).loss, model(views, actions).loss)


@pytest.mark.parametrize("causal", [False, True])
def test_compiled_methods_agree(causal: bool) -> None:
    model = (tiny_model(aggregator=CausalAggregator(12, heads=2, window=2)) if causal else tiny_model()).eval()
    views, actions = sequence()
    imagine: Any = torch.compile(model.imagine, fullgraph=True, backend="aot_eager")
    arguments = views[:, :2], actions[:, :1], actions[:, 1:]
    torch.testing.assert_close(imagine(*arguments), model.imagine(*arguments))
    z, e = model.encode(views), model.embed(actions)
    prefixes: Any = torch.compile(model.aggregate_prefixes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(prefixes(z, e), model.aggregate_prefixes(z, e))


class Objectives(SeqJEPA):
    """A forward that holds pairs and a roll-out, as a training loop would compile it."""

    group: Any = Translation(3)

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> Any:
        out = super().forward(views, actions, mask)
        pairs = pair_loss(self, out, views, actions, self.group, mask=mask).loss
        return out._replace(loss=out.loss + pairs + rollout_loss(self, views, actions, observed=1, horizon=2).loss)


def with_objectives(group: Any) -> Objectives:
    plain = tiny_model(action_dim=group.dim, dropout=0.0)
    model = Objectives(plain.encoder, plain.embedder, plain.aggregator, plain.predictor, plain.target)
    model.group = group
    return model


@pytest.mark.parametrize("masked", [False, True])
def test_a_forward_with_further_objectives_is_one_graph(masked: bool) -> None:
    assert_one_training_step_agrees(
        with_objectives(Translation(3)), lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"), masked
    )


def test_in_a_compiled_graph_the_pairs_are_drawn_anew_each_time() -> None:
    model = with_objectives(Rotation3D()).eval()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    views, _ = sequence()
    actions = Rotation3D.random(12, generator=torch.Generator().manual_seed(0)).unflatten(0, (4, 3))
    torch.manual_seed(0)
    found = {round(float(compiled(views, actions).loss.detach()), 5) for _ in range(20)}
    torch.manual_seed(0)
    assert found == {round(float(model(views, actions).loss), 5) for _ in range(20)}
    assert len(found) == 3  # one, two, or three views further


@pytest.mark.parametrize("bottleneck", [None, GaussianBottleneck(), VectorQuantizer(4, 2)], ids=type)
def test_an_inverse_model_compiles(bottleneck: nn.Module | None) -> None:
    inverse = InverseModel(8, 4, copy.deepcopy(bottleneck), hidden_dim=16)
    inputs = torch.randn(6, 3, 8), torch.randn(6, 3, 8), torch.rand(6, 3) > 0.3
    infer: Any = torch.compile(inverse.infer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = inverse.infer(*inputs)
    torch.manual_seed(0)
    torch.testing.assert_close(infer(*inputs), expected)


class Call(nn.Module):
    """One inference path of a model as a module of its own: what torch.export takes."""

    def __init__(self, model: SeqJEPA, path: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.path = model, path

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.path(self.model, *inputs)


B = torch.export.Dim("B", min=1, max=64)
T = torch.export.Dim("T", min=2, max=16)

PATHS: dict[str, tuple[Callable[..., Tensor], Callable[[int, int], tuple[Tensor, ...]], Any]] = {
    "encode": (lambda m, v: m.encode(v), lambda b, t: (torch.rand(b, t, 3, 8, 8),), ({0: B, 1: T},)),
    "aggregate": (
        lambda m, z, a: m.aggregate(z, m.embed(a)),
        lambda b, t: (torch.rand(b, t, 8), torch.rand(b, t - 1, 3)),
        ({0: B, 1: T}, {0: B, 1: T - 1}),
    ),
    "state": (
        lambda m, v, a: m.aggregate(m.encode(v), m.embed(a)),
        lambda b, t: (torch.rand(b, t, 3, 8, 8), torch.rand(b, t - 1, 3)),
        ({0: B, 1: T}, {0: B, 1: T - 1}),
    ),
    "predict": (
        lambda m, s, a: m.predict(s, m.embed(a[:, None])[:, 0]),
        lambda b, t: (torch.rand(b, 12), torch.rand(b, 3)),
        ({0: B}, {0: B}),
    ),
    "imagine": (
        lambda m, v, a, f: m.imagine(v, a, f),
        lambda b, t: (torch.rand(b, 3, 3, 8, 8), torch.rand(b, 2, 3), torch.rand(b, 2, 3)),
        ({0: B}, {0: B}, {0: B}),
    ),
}


@pytest.mark.parametrize("name", list(PATHS))
def test_the_ways_to_infer_export_with_any_batch_and_length(name: str) -> None:
    path, inputs, dynamic = PATHS[name]
    call = Call(tiny_model().eval(), path)
    with torch.no_grad():
        program = torch.export.export(call, inputs(4, 3), dynamic_shapes=(dynamic,)).module()
        for b, t in ((4, 3), (2, 3), (7, 5)):
            arguments = inputs(b, t)
            torch.testing.assert_close(program(*arguments), call(*arguments))


@pytest.mark.parametrize("name", ["SimCLR", "SIE", "ContextSSL"])
def test_a_baseline_is_one_graph(name: str) -> None:
    views, actions = sequence(observed=1)
    method = tiny(name)
    if name == "ContextSSL":
        method.hide = 0.0  # what is overlooked is drawn anew
    twin = copy.deepcopy(method)
    loss = torch.compile(method, backend="eager", fullgraph=True)(views, actions).loss
    torch.testing.assert_close(loss, twin(views, actions).loss)
