"""Parts that a user gives: they are the ones used, they fit or are refused in words, and the paper's stand in."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqjepa import (
    ActionEmbedder,
    CausalAggregator,
    ConditionedPredictor,
    EMATarget,
    NoActions,
    OnlineTarget,
    SeqJEPA,
    SequenceAggregator,
)
from tests.builders import TinyEncoder, sequence


class Recurrent(nn.Module):
    """An aggregator that takes no mask, whose state is as wide as it likes."""

    def __init__(self, token_dim: int, state_dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(token_dim, state_dim, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gru(tokens)[0][:, -1]


class Heedful(Recurrent):
    """The same that takes one."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(tokens)
        last = mask.long().cumsum(1).argmax(1)
        return self.gru(tokens)[0][torch.arange(len(tokens)), last]


class Ends(nn.Module):
    """A predictor that cuts what it is given to the width it was built for."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, state: Tensor, e: Tensor) -> Tensor:
        return torch.cat([state, e], dim=-1)[..., : self.dim]


def around(encoder: nn.Module | None = None, **parts: Any) -> SeqJEPA:
    """A model of these parts around an encoder of width 12; actions are embedded in 4 numbers."""
    encoder = TinyEncoder(12) if encoder is None else encoder
    embedder = parts.pop("embedder", None) or ActionEmbedder(3, 4)
    return SeqJEPA.from_encoder(encoder, action_dim=3, view_shape=(3, 8, 8), embedder=embedder, **parts)


@given(st.integers(1, 40))
def test_a_predictor_is_built_for_states_as_wide_as_the_aggregator_makes_them(state_dim: int) -> None:
    model = around(aggregator=Recurrent(16, state_dim))
    out = model(*sequence())
    assert (model.predictor.state_dim, out.state.shape, out.prediction.shape) == (state_dim, (4, state_dim), (4, 12))
    out.loss.backward()
    assert model.aggregator.gru.weight_ih_l0.grad.abs().max() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_every_part_that_is_given_is_the_one_used(compiled: bool) -> None:
    aggregator: Any = CausalAggregator(16, depth=1)
    predictor: Any = ConditionedPredictor(state_dim=16, action_dim=4, dim=12, hidden_dim=None)
    if compiled:
        aggregator, predictor = torch.compile(aggregator), torch.compile(predictor)
    model = around(aggregator=aggregator, predictor=predictor, target=OnlineTarget)
    assert model.aggregator is aggregator
    assert model.predictor is predictor
    views, _ = sequence()
    assert torch.equal(model.eval().target(views[:, -1]), model.encoder(views[:, -1]))


def test_the_parts_that_are_built_draw_their_weights_and_nothing_else_is_drawn() -> None:
    encoder = TinyEncoder(12)
    torch.manual_seed(5)
    ours = SeqJEPA.from_encoder(encoder, action_dim=3, view_shape=(3, 8, 8))
    torch.manual_seed(5)
    theirs = SeqJEPA(encoder, ActionEmbedder(3), SequenceAggregator(140), ConditionedPredictor(140, 128, 12))
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    embedder, predictor = ActionEmbedder(3, 4), Ends(12)
    aggregators = [nn.Sequential(CausalAggregator(16, depth=1), nn.Dropout()), CausalAggregator(16, depth=1)]
    before = torch.get_rng_state()
    for aggregator in aggregators:
        around(encoder, embedder=embedder, aggregator=aggregator, predictor=predictor)
    assert torch.equal(torch.get_rng_state(), before)


def test_trying_a_part_on_blanks_leaves_it_as_it_was() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(16)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.norm(tokens.mean(1))

    aggregator = Normed()
    around(aggregator=aggregator)
    assert aggregator.norm.training
    assert aggregator.norm.num_batches_tracked == 0
    assert torch.equal(aggregator.norm.running_mean, torch.zeros(16))  # type: ignore[arg-type]


def test_parts_are_tried_where_their_weights_lie_and_in_their_precision() -> None:
    encoder = TinyEncoder(12).double()
    model = around(encoder, embedder=ActionEmbedder(3, 4).double(), aggregator=Recurrent(16, 9).double()).double()
    assert model(*sequence(dtype=torch.float64)).state.shape == (4, 9)
    with torch.device("meta"):
        assert around(aggregator=Recurrent(16, 9), predictor=Ends(12)).aggregator.gru.hidden_size == 9


def test_from_timm_takes_parts_and_what_makes_a_target_of_its_encoder() -> None:
    model = SeqJEPA.from_timm(
        "resnet18", action_dim=2, cifar_stem=True, embedder=NoActions(), aggregator=Recurrent(512, 600),
        predictor=Ends(512), target=lambda encoder: EMATarget(encoder, 0.5, buffers="ema"),
    )  # fmt: skip
    assert torch.equal(model.target.encoder.conv1.weight, model.encoder.conv1.weight)
    assert model.target.buffer_mode == "ema"
    assert model(torch.rand(2, 3, 3, 8, 8), torch.randn(2, 2, 2)).state.shape == (2, 600)


def test_a_state_of_any_width_is_saved_and_loaded_again(tmp_path: Any) -> None:
    model = around(aggregator=Recurrent(16, 9), predictor=Ends(12)).eval()
    model.save_pretrained(tmp_path)
    own = {"encoder": TinyEncoder(12), "aggregator": Recurrent(16, 9), "predictor": Ends(12)}
    again = SeqJEPA.from_pretrained(tmp_path, **own)
    for mine, theirs in zip(model(*sequence())[:5], again(*sequence())[:5], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"aggregator": CausalAggregator(12)},
            r"are 16 wide: 12 of the encoder and 4.* takes 12\. Build Causal.*\(16\)",
        ),
        (
            {"aggregator": Recurrent(12, 12)},
            r"Recurrent cannot take \(1, 2, 16\): .* tokens are 16 wide: 12 of",
        ),
        (
            {"aggregator": nn.Linear(16, 5)},
            r"one state of each.* of tokens \(1, 2, 16\) Linear made \(1, 2, 5\)",
        ),
        ({"aggregator": nn.GRU(16, 5)}, r"GRU made tuple\. Let it return one vector a sequence"),
        (
            {"aggregator": Recurrent(16, 7), "predictor": ConditionedPredictor(16, 4, 9)},
            r"with state_dim=16, action_dim=4, dim=9; .* Build .*\(state_dim=7, action_dim=4, dim=12\)",
        ),
        ({"predictor": Ends(9)}, r"what the encoder makes, \(B, 12\); .* Ends made \(1, 9\)\. Let it end 12 wide"),
        ({"predictor": nn.Linear(20, 12)}, r"Linear cannot take \(1, 16\) and \(1, 4\): .*states 16 wide and embedded"),
    ],
)
def test_parts_that_do_not_fit_the_encoder_are_refused_when_the_model_is_built(
    parts: dict[str, nn.Module], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        around(**parts)


@pytest.mark.parametrize(("target", "name"), [("EMA", "str"), (lambda encoder: 3, "int")])
def test_a_target_that_is_no_module_is_refused(target: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"target is a module, or makes one of the encoder, .* got {name}"):
        around(target=target)


@pytest.mark.parametrize("role", ["embedder", "aggregator", "predictor"])
def test_a_class_in_the_place_of_a_part_is_refused(role: str) -> None:
    said = rf"{role} is a module; got the class Recurrent: call it"
    with pytest.raises(TypeError, match=said):
        around(**cast(Any, {role: Recurrent}))
    whole: Any = around()
    parts = {name: getattr(whole, name) for name in ("encoder", "embedder", "aggregator", "predictor", "target")}
    with pytest.raises(TypeError, match=said):
        SeqJEPA(**parts | {role: Recurrent})


def test_a_mask_for_an_aggregator_that_takes_none_is_refused_and_not_dropped() -> None:
    model, mask = around(aggregator=Recurrent(16, 8)), torch.ones(4, 3, dtype=torch.bool)
    views, actions = sequence()
    z, e = torch.randn(4, 3, 12), torch.randn(4, 2, 4)
    with pytest.raises(TypeError, match=r"which views count, forward\(tokens, mask\); Recurrent\.forward takes \(tok"):
        model(views, actions, mask)
    with pytest.raises(TypeError, match=r"Recurrent\.forward takes"):
        model.aggregate_prefixes(z, e, mask)
    assert model.aggregate_prefixes(z, e).shape == (4, 3, 8)
    assert model.imagine(views[:, :2], actions[:, :1], actions[:, 1:]).shape == (4, 2, 12)


def test_an_aggregator_of_the_user_s_own_that_takes_a_mask_reads_each_row_as_if_alone() -> None:
    model = around(aggregator=Heedful(16, 8)).eval()
    views, actions = sequence()
    out = model(views, actions, torch.tensor([[True, False, False], [True, True, False], [True] * 3, [True] * 3]))
    for row, length in enumerate((1, 2, 3)):
        alone = model(views[row : row + 1, : length + 1], actions[row : row + 1, :length])
        torch.testing.assert_close(out.state[row], alone.state[0])


def test_a_failure_inside_an_aggregator_that_takes_a_mask_is_its_own() -> None:
    class Broken(nn.Module):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            if mask is not None:
                raise TypeError("of its own")
            return tokens.sum(1)

    with pytest.raises(TypeError, match=r"^of its own$"):
        around(aggregator=Broken())(*sequence(), torch.ones(4, 3, dtype=torch.bool))


def test_a_target_that_is_a_module_is_taken_as_it_is() -> None:
    encoder = TinyEncoder(12)
    target = EMATarget(encoder, 0.5)
    assert around(encoder, target=target).target is target
    assert around(encoder, target=lambda given: EMATarget(given, 0.3)).target.momentum == 0.3


@pytest.mark.parametrize("masked", [False, True])
def test_an_aggregator_of_the_user_s_own_is_compiled_without_a_graph_break(masked: bool) -> None:
    class Mean(nn.Module):
        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            if mask is None:
                return tokens.mean(1)
            return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    model = around(aggregator=Mean()).eval()
    views, actions = sequence()
    mask = torch.tensor([[True, True, False]] * 4) if masked else None
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(views, actions, mask).state, model(views, actions, mask).state)
