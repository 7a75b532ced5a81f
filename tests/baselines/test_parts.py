"""Pairs of views, projector, hypernetwork, mean."""

import pytest
import torch
from torch import nn

from seqjepa.baselines import HyperPredictor, Projector, ViewPairs
from seqjepa.groups import Rotation3D, Translation

GROUP = Translation(2)


def path(sources: int = 5, views: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Views that are where they were taken, and the actions between."""
    places = torch.randn(sources, views, 2, dtype=torch.float64)
    return places, GROUP.actions(places)


@pytest.mark.parametrize("policy", ["first", "disjoint", "consecutive", "random"])
@pytest.mark.parametrize("views", [2, 3, 4, 5])
def test_the_action_of_a_pair_leads_from_its_first_view_to_its_second(policy, views: int) -> None:
    places, actions = path(views=views)
    paired = ViewPairs(policy, group=GROUP)(places, actions)
    first, second = paired.views[:, paired.first], paired.views[:, paired.second]
    torch.testing.assert_close(GROUP.apply(first, paired.actions), second)
    assert first.shape[1] == {"first": 1, "disjoint": views // 2, "consecutive": views - 1, "random": 1}[policy]
    assert paired.views.shape[1] <= views


def test_random_pairs_go_onwards_are_all_drawn_and_come_again_with_the_seed() -> None:
    numbers = torch.arange(4.0).expand(400, 4)[..., None]
    actions = Translation(1).actions(numbers)

    def drawn() -> torch.Tensor:
        pairs = ViewPairs("random", group=Translation(1), generator=torch.Generator().manual_seed(3))
        return pairs(numbers, actions).views.flatten(1)

    assert torch.equal(drawn(), drawn())
    kinds, counts = drawn().unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert counts.min() > 400 / 6 / 2


def test_random_pairs_compose_rotations() -> None:
    q = Rotation3D.random(12, generator=torch.Generator().manual_seed(0)).unflatten(0, (3, 4))
    paired = ViewPairs("random", group=Rotation3D())(q, Rotation3D().actions(q))
    expected = Rotation3D().relative(paired.views[:, 0], paired.views[:, 1])
    torch.testing.assert_close(paired.actions[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_pairs_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of 'first', .*; got 'all'"):
        ViewPairs("all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"several actions, which their group composes; got group=None"):
        ViewPairs("random")


def test_the_projector_has_the_layers_it_says() -> None:
    for last, kind in (("linear", nn.Linear), ("bias-free", nn.Linear), ("norm", nn.BatchNorm1d)):
        projector = Projector(4, 6, 5, 3, bias=False, last=last)  # type: ignore[arg-type]
        assert isinstance(projector.layers[-1], kind)
        linear = [layer for layer in projector.layers if isinstance(layer, nn.Linear)]
        assert [layer.bias is None for layer in linear] == [True, True, last != "linear"]
        assert projector(torch.randn(5, 2, 4)).shape == (5, 2, 3)
    closed = Projector(4, 3, last="norm")(torch.randn(50, 4))
    torch.testing.assert_close(closed.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="each at least 1; got \\(4,\\)"):
        Projector(4)
    with pytest.raises(ValueError, match="last must be 'linear'"):
        Projector(4, 4, last="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vectors 4 wide"):
        Projector(4, 4)(torch.randn(3, 5))
    with pytest.raises(ValueError, match="at least two views; got 1"):
        Projector(4, 4, 4)(torch.randn(1, 1, 4))


@pytest.mark.parametrize("affine", [False, True])
def test_the_hypernetwork_s_map_is_the_sum_of_its_maps_weighed_by_the_action(affine: bool) -> None:
    part = HyperPredictor(5, 3, affine=affine).double()
    y, a = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    for row, action, got in zip(y, a, part(y, a), strict=True):
        w = sum(action[k] * part.weight[k] for k in range(3)) + affine * part.weight[-1]
        torch.testing.assert_close(got, w @ row)
    torch.testing.assert_close(part(2 * y, a), 2 * part(y, a))
    if not affine:
        torch.testing.assert_close(part(y, -a), -part(y, a))
        assert not part(y, 0 * a).any()
    assert part(y[:1], a[:1]).shape == (1, 5)


def test_the_hypernetwork_keeps_the_length_of_y_at_first() -> None:
    y = torch.randn(64, 256)
    ratio = HyperPredictor(256, 4)(y, torch.eye(4)[torch.arange(64) % 4]).norm(dim=1) / y.norm(dim=1)
    assert 0.8 < ratio.mean() < 1.25


def test_the_hypernetwork_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0 and 4"):
        HyperPredictor(0, 4)
    with pytest.raises(ValueError, match=r"state must be \(B, 5\) and action \(B, 3\); got \(2, 5\) and \(2, 4\)"):
        HyperPredictor(5, 3)(torch.randn(2, 5), torch.randn(2, 4))
