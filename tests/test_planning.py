"""Planning: worlds whose best plan is known, and what no search may do."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqjepa import CausalAggregator
from seqjepa.groups import Crop, Group, Hue, Product, Rotation2D, Rotation3D, Translation
from seqjepa.loss import MSEDistance
from seqjepa.planning import CEM, MPPI, GradientSearch, Plan, Search, plan
from tests.builders import TinyEncoder, sequence, tiny_model

SEARCHES: dict[str, Any] = {
    "cem": CEM(samples=200, rounds=40, elites=20),
    "mppi": MPPI(samples=200, rounds=70, temperature=1e-5, decay=0.9),
    "gradient": GradientSearch(rate=0.1, rounds=300, samples=4),
}
searches = pytest.mark.parametrize("search", SEARCHES.values(), ids=list(SEARCHES))
QUICK = [CEM(16, 3, 4), MPPI(16, 3), GradientSearch(rounds=3)]


class World(nn.Module):
    """A model that knows its world: a view is its representation, and each action moves it as `step` says."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def encode(self, views: Tensor) -> Tensor:
        return views

    def embed(self, actions: Tensor) -> Tensor:
        return actions

    def target(self, views: Tensor) -> Tensor:
        return views

    def imagine_from(self, z: Tensor, e: Tensor, future: Tensor) -> Tensor:
        now, ahead = z[:, -1], []
        for k in range(future.shape[1]):
            now = self.step(now, future[:, k])
            ahead.append(now)
        return torch.stack(ahead, dim=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(d: int, a: int) -> tuple[World, Tensor, Tensor, Tensor]:
    """z′ = z + Ba, three starts and goals, and B."""
    by = torch.randn(d, a, dtype=torch.float64, generator=generator())
    z, goal = torch.randn(2, 3, d, dtype=torch.float64, generator=generator(1))
    return World(lambda z, action: z + action @ by.T), z, goal, by


@searches
@pytest.mark.parametrize("horizon", [1, 2])
def test_in_a_linear_world_the_plan_is_the_least_squares_solution(search: Any, horizon: int) -> None:
    world, z, goal, by = linear(5, 2)
    none = torch.zeros(3, 0, 2, dtype=torch.float64)
    best = plan(
        world, z[:, None], none, goal, horizon=horizon, search=search, cost=MSEDistance(), generator=generator()
    )
    first = torch.linalg.lstsq(by, (goal - z).T).solution.T
    expected = torch.zeros(3, horizon, 2, dtype=torch.float64)
    expected[:, 0] = first  # to be there at once, and to stay
    torch.testing.assert_close(best.actions, expected, rtol=0, atol=1e-3)
    rest = (goal - z - first @ by.T).square().mean(-1) * horizon
    torch.testing.assert_close(best.cost, rest, rtol=1e-3, atol=1e-4)
    assert best.history.shape == (search.rounds, 3)


@searches
def test_of_one_angle_no_grid_point_is_better_by_more_than_its_spacing_allows(search: Any) -> None:
    def bumpy(z: Tensor, a: Tensor) -> Tensor:
        return torch.cat([(z[:, :1] + a).cos(), (3 * a).sin(), a.cos()], dim=-1)

    z, goal = torch.randn(2, 4, 3, generator=generator(2), dtype=torch.float64)
    wide = dataclasses.replace(search, spread=2.0)
    found = plan(
        World(bumpy), z[:, None], z.new_zeros(4, 0, 1), goal, horizon=1, group=Rotation2D(), search=wide,
        cost=MSEDistance(), generator=generator(),
    )  # fmt: skip
    grid = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1, None]
    costs = torch.stack([MSEDistance()(bumpy(row.expand(2000, -1), grid), g) for row, g in zip(z, goal, strict=True)])
    if isinstance(search, CEM):
        assert (found.cost <= costs.amin(1) + 1e-3).all()
    else:  # these stop in a valley: none is better nearby
        for row in range(4):
            near = Rotation2D().distance(grid, found.actions[row, 0]) < 0.05
            assert found.cost[row] <= costs[row][near].min() + 1e-2


@searches
def test_it_finds_rotations_and_products(search: Search) -> None:
    group = Product({"pose": Rotation3D(), "hue": Hue()})
    poses = Rotation3D.random(3, generator=generator(), dtype=torch.float64)
    z = group.join({"pose": poses, "hue": torch.rand(3, 1, generator=generator(), dtype=torch.float64)})
    way = group.exp(0.4 * torch.randn(3, 4, generator=generator(1), dtype=torch.float64))
    goal = group.apply(z, way)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        distances = group.distances(a, b)
        return distances["pose"].square() + (2 * distances["hue"]).square()

    nothing = torch.empty(3, 0, 5, dtype=torch.float64)
    found = plan(
        World(group.apply),
        z[:, None],
        nothing,
        goal,
        horizon=1,
        group=group,
        search=search,
        cost=apart,
        generator=generator(),
    )
    assert group.distance(found.actions[:, 0], way).max() < 0.05


def untrained(**parts: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    model = tiny_model(**parts)
    views, actions = sequence()
    return model, views[:, :3], actions[:, :2], views[:, 3]


@pytest.mark.parametrize("search", QUICK, ids=["cem", "mppi", "gradient"])
@pytest.mark.parametrize("causal", [False, True])
def test_each_source_alone_gets_the_plan_that_it_gets_in_its_batch(search: Search, causal: bool) -> None:
    model, views, actions, goal = untrained(**({"aggregator": CausalAggregator(12, heads=2)} if causal else {}))
    model.double()
    views, actions, goal = views.double(), actions.double(), goal.double()
    for other in (views, goal):  # as different as they come
        other[0] *= 3
    together = plan(model, views, actions, goal, horizon=3, search=search, generator=generator())
    for row in range(4):
        one = slice(row, row + 1)
        alone = plan(model, views[one], actions[one], goal[one], horizon=3, search=search, generator=generator())
        torch.testing.assert_close(alone.actions[0], together.actions[row], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(alone.history[:, 0], together.history[:, row], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("search", QUICK, ids=["cem", "mppi", "gradient"])
def test_views_and_goal_are_encoded_once_and_the_model_stays_as_it_is(search: Search) -> None:
    class Counted(TinyEncoder):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model, views, actions, goal = untrained(encoder=Counted())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = plan(model, views, actions, goal, horizon=2, search=search, generator=generator())
    assert (model.encoder.calls, model.target.encoder.calls) == (1, 1)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part.requires_grad for part in found)
    model.eval()
    z = model.target(goal)
    again = plan(model, views, actions, z, horizon=2, search=search, generator=generator())
    for got, expected in zip(again, found, strict=True):
        assert torch.equal(got, expected)  # the goal's representation is as good as the goal
    imagined = model.imagine(views, actions, found.actions)
    costs = 1 - torch.cosine_similarity(imagined, z[:, None], dim=-1)
    torch.testing.assert_close(found.cost, costs.sum(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("search", [CEM(16, 8, 4), CEM(16, 8, 1), GradientSearch(rounds=8)], ids=repr)
def test_what_is_kept_never_gets_worse_nor_is_worse_than_doing_nothing(search: Search) -> None:
    model, views, actions, goal = untrained()
    found = plan(model, views, actions, goal, horizon=2, search=search, generator=generator())
    assert (found.history.diff(dim=0) <= 1e-6).all()
    torch.testing.assert_close(found.cost, found.history[-1], atol=1e-5, rtol=1e-5)
    model.eval()
    still = model.imagine(views, actions, torch.zeros(4, 2, 3))
    doing_nothing = (1 - torch.cosine_similarity(still, model.target(goal)[:, None], dim=-1)).sum(1)
    assert (found.cost <= doing_nothing + 1e-5).all()


@pytest.mark.parametrize("search", [CEM(4, 1, 2), GradientSearch(rounds=1, samples=2)], ids=repr)
def test_at_the_goal_already_one_stays(search: Search) -> None:
    world, z, _, _ = linear(4, 2)
    none = torch.zeros(3, 0, 2, dtype=torch.float64)
    found = plan(world, z[:, None], none, z, horizon=2, search=search, cost=MSEDistance(), generator=generator())
    assert not found.actions.any()
    assert not found.cost.any()


def test_a_step_too_far_is_not_kept() -> None:
    def objective(v: Tensor) -> Tensor:
        return v.square().sum((2, 3))

    start = torch.full((2, 1, 1), 0.1, dtype=torch.float64)
    search = GradientSearch(rate=10.0, rounds=4, samples=1)
    found, history = search(objective, start, None, None)
    assert torch.equal(found, start)
    torch.testing.assert_close(history, torch.full((4, 2), 0.01).double())


@searches
def test_a_constant_in_the_cost_changes_nothing(search: Any) -> None:
    world, z, goal, _ = linear(4, 2)
    none = torch.zeros(3, 0, 2, dtype=torch.float64)
    few = dataclasses.replace(search, rounds=5)
    costs: list[Callable[[Tensor, Tensor], Tensor]] = [MSEDistance(), lambda p, t: MSEDistance()(p, t) + 8]
    plain, more = (
        plan(world, z[:, None], none, goal, horizon=2, search=few, cost=cost, generator=generator()) for cost in costs
    )
    torch.testing.assert_close(more.actions, plain.actions, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(more.cost, plain.cost + 16)


def test_mppi_is_the_best_draw_without_temperature_and_the_mean_with_all_of_it() -> None:
    drawn: list[Tensor] = []

    def objective(v: Tensor) -> Tensor:
        drawn.append(v)
        return (v - 1).square().sum((2, 3))

    start = torch.zeros(2, 3, 2, dtype=torch.float64)
    cold, _ = MPPI(samples=50, rounds=1, temperature=1e-9)(objective, start, None, generator())
    best = objective(drawn[0]).argmin(1)
    torch.testing.assert_close(cold, drawn[0][torch.arange(2), best])
    hot, _ = MPPI(samples=50, rounds=1, temperature=1e12)(objective, start, None, generator())
    torch.testing.assert_close(hot, drawn[0].mean(1))


def test_one_elite_is_no_nan_and_without_smoothing_a_search_of_one_place() -> None:
    def objective(v: Tensor) -> Tensor:
        assert v.isfinite().all()
        return v.square().sum((2, 3))

    for smoothing in (0.0, 0.5):
        found, history = CEM(8, 5, elites=1, smoothing=smoothing)(objective, torch.ones(2, 2, 1), None, generator())
        assert found.isfinite().all()
        assert history.isfinite().all()


@pytest.mark.parametrize("search", QUICK, ids=["cem", "mppi", "gradient"])
@pytest.mark.parametrize("bounds", [0.3, torch.tensor([0.1, 0.2, 0.05])], ids=["one", "each"])
def test_bounds_hold_in_local_coordinates(search: Any, bounds: Any) -> None:
    turn, group = Rotation3D(), Rotation3D()
    z = turn.random(3, generator=generator())
    goal = turn.apply(z, turn.exp(torch.tensor([2.0, 1.0, -1.0])))
    far = group.exp(torch.full((3, 2, 3), 0.9))
    for start in (None, far):
        found = plan(
            World(group.apply), z[:, None], torch.empty(3, 0, 4), goal, horizon=2, group=group, cost=group.distance,
            search=dataclasses.replace(search, spread=1.0), bounds=bounds, start=start, generator=generator(),
        )  # fmt: skip
        assert (group.log(found.actions).abs() <= torch.as_tensor(bounds) + 1e-5).all()


def test_a_search_begins_where_it_is_told() -> None:
    world, z, goal, by = linear(3, 3)
    solution = torch.linalg.lstsq(by, (goal - z).T).solution.T[:, None]
    none, tiny = torch.zeros(3, 0, 3, dtype=torch.float64), CEM(samples=2, rounds=1, elites=1, spread=1e-6)
    found = plan(world, z[:, None], none, goal, horizon=1, search=tiny, cost=MSEDistance(), start=solution)
    torch.testing.assert_close(found.actions, solution, rtol=0, atol=1e-4)
    assert found.cost.max() < 1e-9


def test_one_seed_gives_one_plan_and_torch_s_own_draws_serve_too() -> None:
    model, views, actions, goal = untrained()
    search = CEM(16, 2, 4)
    first, second, other = (
        plan(model, views, actions, goal, horizon=2, search=search, generator=generator(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first.actions, second.actions)
    assert not torch.equal(first.actions, other.actions)
    torch.manual_seed(5)
    mine = plan(model, views, actions, goal, horizon=2, search=search)
    torch.manual_seed(5)
    assert torch.equal(mine.actions, plan(model, views, actions, goal, horizon=2, search=search).actions)


def test_the_names_of_the_issue_work() -> None:
    model = tiny_model(action_dim=4)
    views, actions = sequence(action_dim=4)
    actions = Rotation3D.random(4, 3)
    best = plan(
        model, views[:, :3], actions[:, :2], views[:, 3], horizon=4, group=Rotation3D(),
        search=CEM(samples=32, rounds=2, elites=8), generator=generator(),
    )  # fmt: skip
    assert isinstance(best, Plan)
    assert (best.actions.shape, best.cost.shape, best.history.shape) == ((4, 4, 4), (4,), (2, 4))
    torch.testing.assert_close(best.actions.norm(dim=-1), torch.ones(4, 4))


@pytest.mark.parametrize(("change", "message"), [
    ({"horizon": 0}, "how many actions are planned, at least 1; got 0"),
    ({"goal": torch.rand(4, 9)}, r"here \(4, 3, 8, 8\), or its representation, \(4, 8\); got shape \(4, 9\)"),
    ({"goal": torch.rand(3, 8)}, r"got shape \(3, 8\)"),
    ({"group": Rotation3D()}, r"The group's actions have 4 numbers; got actions of shape \(4, 2, 3\)"),
    ({"group": Crop()}, r"The group's actions have 5 numbers"),
    ({"start": torch.zeros(4, 1, 3)}, r"start is a plan, \(B, K, A\), here \(4, 2, 3\); got shape \(4, 1, 3\)"),
    ({"bounds": torch.ones(2)}, r"one for each of the 3 local coordinates; got \(2,\)"),
    ({"bounds": 0.0}, r"one number above 0 or .*; got 0\.0"),
    ({"actions": torch.zeros(4, 3, 3)}, r"3 views need 2 actions"),
])  # fmt: skip
def test_wrong_questions_are_refused(change: dict[str, Any], message: str) -> None:
    model, views, actions, goal = untrained()
    asked: dict[str, Any] = {"views": views, "actions": actions, "goal": goal, "horizon": 2, **change}
    with pytest.raises(ValueError, match=message):
        plan(model, asked.pop("views"), asked.pop("actions"), asked.pop("goal"), **asked)


def test_a_group_without_local_coordinates_cannot_be_searched() -> None:
    class Fixed(Translation):
        local_dim, exp, log = Group.local_dim, Group.exp, Group.log

    model, views, actions, goal = untrained()
    with pytest.raises(NotImplementedError, match="Fixed has no local coordinates yet"):
        plan(model, views, actions, goal, horizon=1, group=Fixed(3))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: CEM(samples=8, elites=9), r"1 … 8; got elites=9\. Draw more samples"),
    (lambda: CEM(elites=0), r"got elites=0"),
    (lambda: CEM(smoothing=1.0), r"in \[0, 1\); got 1\.0"),
    (lambda: CEM(rounds=0), r"1 sample and 1 round at least; got samples=256 and rounds=0"),
    (lambda: MPPI(samples=0), r"got samples=0 and rounds=6"),
    (lambda: MPPI(decay=1.5), r"a factor in \(0, 1\] a round; got decay=1\.5"),
    (lambda: MPPI(temperature=0.0), r"temperature must be above 0 and finite; got 0"),
    (lambda: GradientSearch(rate=math.inf), r"rate must be above 0 and finite; got inf"),
    (lambda: GradientSearch(spread=0.0), r"spread of the first draws must be above 0 and finite; got 0"),
])  # fmt: skip
def test_wrong_searches_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
