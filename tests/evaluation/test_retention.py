"""What is left of the pose in what is imagined: exact worlds, and models that forget in known ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa import CausalAggregator
from seqjepa.evaluation import MeanAggregate, extract, retention
from seqjepa.groups import Rotation3D
from tests.builders import tiny_model
from tests.evaluation.worlds import Exact, both, world

OBSERVED, HORIZON = 2, 3


class Dreams(Exact):
    """The exact model, which forgets the pose by so much at each step."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def imagine_from(self, z: Tensor, e: Tensor, future: Tensor) -> Tensor:
        assert z.shape[1] == e.shape[1] + 1 == OBSERVED
        last, ahead, generator = z[:, -1], [], torch.Generator().manual_seed(len(z))
        for action in future.unbind(1):
            last = self.predict(self.aggregate(last[:, None], e[:, :0]), action)
            last = last + self.noise * torch.randn(last.shape, generator=generator)
            ahead.append(last)
        return torch.stack(ahead, dim=1)


class Stays(Dreams):
    """One that takes the last view for the next."""

    def imagine_from(self, z: Tensor, e: Tensor, future: Tensor) -> Tensor:
        return z[:, -1:].expand(-1, future.shape[1], -1)


def measured(model: Any, spread: float = 1.0, **options: Any) -> Any:
    features = [extract(model, world(400, OBSERVED + HORIZON, seed, spread)) for seed in (0, 1)]
    return retention(model, *features, **{"observed": OBSERVED, "horizon": HORIZON, "hidden": ()} | options)


def test_a_model_that_knows_its_world_retains_all_of_it() -> None:
    found = measured(Dreams())
    assert list(found.curve) == [1, 2, 3]
    for k, kept in found.curve.items():
        assert kept == pytest.approx(1, abs=0.01)
        assert found.imagined[k].mean == pytest.approx(found.encoded[k].mean, abs=0.01)
        assert found.encoded[k].mean > 0.9  # a rotation matrix, and the quaternion that is asked for
        assert abs(found.last[k].mean) < 0.1  # poses are drawn anew for each view


def test_what_is_lost_at_each_step_is_lost_for_good() -> None:
    curve = measured(Dreams(noise=0.25)).curve
    assert 0.95 > curve[1] > curve[2] > curve[3] > 0


def test_one_that_takes_the_last_view_for_the_next_knows_what_the_last_view_says() -> None:
    found = measured(Stays())
    for k in found.curve:
        assert found.imagined[k].mean == pytest.approx(found.last[k].mean, abs=1e-6)


def test_actions_alone_tell_where_they_lead_and_no_view_is_read_for_that() -> None:
    found = measured(Dreams())
    assert all(0.15 < found.blank[k].mean < found.imagined[k].mean - 0.2 for k in found.curve)
    other = Dreams()
    other.encode = lambda views: torch.cat([views[..., :9].roll(1, 0), views[..., 9:]], dim=-1)  # type: ignore[method-assign]
    told = measured(other)  # of other views
    assert told.imagined[1].mean < 0.9 * found.imagined[1].mean


@pytest.mark.parametrize("causal", [False, True])
def test_a_seqjepa_is_asked_as_it_imagines(causal: bool) -> None:
    parts = {"aggregator": CausalAggregator(12, heads=2)} if causal else {}
    model = tiny_model(action_dim=4, **parts)
    q = torch.nn.functional.normalize(torch.randn(40, 4, 4), dim=-1)
    views = torch.rand(40, 4, 3, 8, 8)
    features = extract(model, world(40)._replace(views=views, actions=Rotation3D().actions(q), parameters=q))
    found = retention(model, features, features, observed=1, horizon=3, hidden=())
    model.eval()
    with torch.no_grad():
        ahead = model.imagine(views[:, :1], features.actions[:, :0], features.actions)
    again = replace(features, z=torch.cat([features.z[:, :1], ahead], dim=1))
    for k in (1, 2, 3):
        expected = retention(model, again, again, observed=1, horizon=3, hidden=()).encoded[k]
        assert found.imagined[k].mean == pytest.approx(expected.mean, abs=1e-4)


def test_what_cannot_be_asked_is_said() -> None:
    model = Dreams()
    train, test = both(model, views=4)
    with pytest.raises(ValueError, match=r"2 observed views and 3 steps ahead take 5 views; got 4\. Make longer"):
        retention(model, train, test, observed=2, horizon=3)
    with pytest.raises(ValueError, match="must be at least 1; got 0 and 2"):
        retention(model, train, test, observed=0, horizon=2)
    with pytest.raises(ValueError, match="must be at least 1; got 2 and 0"):
        retention(model, train, test, observed=2, horizon=0)
    with pytest.raises(ValueError, match=r"absolute parameters, which these features lack\. Give the ViewSequence"):
        retention(model, train, replace(test, elements=None), observed=2, horizon=2)
    with pytest.raises(ValueError, match="features of an encoder alone"):
        retention(model, replace(train, e=None), test, observed=2, horizon=2)
    with pytest.raises(TypeError, match="Only a model that imagines can be asked; Exact does not"):
        retention(Exact(), train, test, observed=2, horizon=2)
    with pytest.raises(TypeError, match="MeanAggregate does not"):
        retention(MeanAggregate(model), train, test, observed=2, horizon=2)
