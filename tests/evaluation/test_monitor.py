"""The monitor: silent on a healthy run, plain about a collapsing one."""

import copy
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqjepa import CosineSchedule, EMATarget, OnlineTarget, SeqJEPA, StopGradientTarget
from seqjepa.evaluation import (
    Monitor,
    MonitorReport,
    Thresholds,
    batch_norm_drift,
    feature_deviation,
    lidar,
    mean_pairwise_cosine,
    rankme,
    target_gap,
)
from seqjepa.evaluation._following import fingerprint
from tests.builders import TinyEncoder


class WithGradient(nn.Module):
    """A target without the stop-gradient: the encoder may make its own task easy."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = (encoder,)

    def forward(self, views: Tensor) -> Tensor:
        return self._encoder[0](views)

    def update(self, encoder: nn.Module) -> None:
        pass


def encoder_of(width: int) -> nn.Module:
    def block(i: int, o: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(*block(1, 16, 2), *block(16, width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def batches(steps: int, batch: int = 64) -> Any:
    """Blurred random pictures, shifted: the action is the shift."""
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pictures = F.interpolate(torch.rand(batch, 1, 5, 5, generator=g), size=20, mode="bilinear")
        at = torch.randint(0, 9, (batch, 3, 2), generator=g)
        views = torch.stack([
            torch.stack([picture[:, i : i + 12, j : j + 12] for i, j in where])
            for picture, where in zip(pictures, at.tolist(), strict=True)
        ])  # fmt: skip
        yield views, (at[:, 1:] - at[:, :-1]).float() / 8


def train(steps: int, every: int, target: Any = None, width: int = 32) -> tuple[SeqJEPA, list[MonitorReport]]:
    torch.manual_seed(0)
    encoder = encoder_of(width)
    kind = target(encoder) if target else EMATarget(encoder, CosineSchedule(0.98, 1.0, steps))
    model = SeqJEPA.from_encoder(encoder, action_dim=2, view_shape=(1, 12, 12), target=kind)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    monitor = Monitor(every)
    for views, actions in batches(steps):
        out = model(views, actions)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target()
        extra = {} if target else {"encoder": model.encoder, "target_encoder": model.target}
        monitor(z=out.z, state=out.state, prediction=out.prediction, target=out.target, **extra)
    return model, list(monitor.history)


def test_it_is_silent_on_a_healthy_run() -> None:
    _, reports = train(60, every=20)
    assert [report.step for report in reports] == [20, 40, 60]
    assert all(report.healthy for report in reports), [str(report) for report in reports]


def test_it_names_the_collapse_of_a_run_without_a_stop_gradient() -> None:
    _, reports = train(60, every=20, target=WithGradient)
    assert not reports[-1].healthy
    assert reports[-1].verdict.startswith(("collapsed: all z", "collapsing: z")), str(reports[-1])
    assert reports[-1].gap is not None
    assert reports[-1].gap < 0.01


def low_rank(rows: int, width: int, rank: int) -> Tensor:
    return torch.randn(rows, rank) @ torch.randn(rank, width)


def test_it_names_a_dimensional_collapse() -> None:
    monitor = Monitor(every=1)
    assert monitor(z=low_rank(600, 512, 2)).verdict == "collapsing: z has effective rank 2 of 512"  # type: ignore[union-attr]
    healthy = torch.randn(600, 512)
    state = Monitor(every=1)(z=healthy, state=low_rank(600, 128, 3))
    assert state is not None
    assert state.verdict == "collapsing: state has effective rank 3 of 128"


def test_all_rows_one_way_are_a_collapse_whatever_the_noise_around() -> None:
    report = Monitor(every=1)(z=5 + 0.1 * torch.randn(100, 64))
    assert report is not None
    assert report.verdict == "collapsed: all z point one way (mean cosine 1.000)"


def test_a_collapse_that_is_being_left_is_said_so() -> None:
    monitor = Monitor(every=1)
    monitor(z=low_rank(600, 512, 2))
    report = monitor(z=low_rank(600, 512, 9))
    assert report is not None
    assert report.verdict.startswith("recovering: z has effective rank 9 of 512, 2 at the last report")
    stuck = monitor(z=low_rank(600, 512, 9))
    assert stuck is not None
    assert stuck.verdict.startswith("collapsing: z has effective rank")


def test_a_fall_is_told_from_the_highest_rank() -> None:
    monitor = Monitor(every=2)
    for rank in (200, 200, 100, 40):
        monitor(z=low_rank(600, 256, rank))
        monitor(z=low_rank(600, 256, rank))
    verdicts = [report.verdict for report in monitor.history]
    assert verdicts[:3] == ["ok", "ok", "ok"]
    assert verdicts[3].startswith("falling: z has effective rank 3")
    assert verdicts[3].endswith("at step 2") or verdicts[3].endswith("at step 4")


def test_predictions_that_fit_any_target_are_blind() -> None:
    z, target = torch.randn(64, 32), torch.randn(64, 16)
    shuffled = Monitor(every=1)(z=z, prediction=torch.ones(64, 16), target=target)
    own = Monitor(every=1)(z=z, prediction=target + 0.1 * torch.randn(64, 16), target=target)
    assert shuffled is not None
    assert own is not None
    assert shuffled.verdict.startswith("blind: predictions fit shuffled targets as well as their own (gap ")
    assert own.healthy


def test_a_target_whose_batch_norm_is_far_off_is_drifting() -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder)
    target.encoder.bn1.running_mean += 5
    report = Monitor(every=1)(encoder=encoder, target_encoder=target)
    assert report is not None
    assert report.drift == pytest.approx(batch_norm_drift(encoder, target))
    assert report.verdict.startswith("drifting: the target's batch norm is 4.5 deviations from")


def test_a_smaller_batch_is_not_held_to_what_a_larger_one_had() -> None:
    g, monitor = torch.Generator().manual_seed(0), Monitor(every=1)
    for rows in (512, 10, 512, 64, 3, 200, 10, 512):
        report = monitor(z=torch.randn(rows, 3, 256, generator=g))
        assert report is not None
        assert report.healthy, report
    for rows in (10, 512):  # but a fall is seen in either
        fallen = Monitor(every=1)
        for width in (256, 256, 6):
            last = fallen(z=torch.randn(rows, 3, width, generator=g) @ torch.randn(width, 256, generator=g))
        assert last is not None
        assert last.verdict.startswith(("falling: z", "collapsing: z"))


@pytest.mark.parametrize("rows", [12, 32, 128])
def test_a_blind_prediction_is_named_at_small_batches_too_and_one_that_sees_is_not(rows: int) -> None:
    g = torch.Generator().manual_seed(rows)
    blind = seeing = 0
    for _ in range(100):
        z, target, noise = (torch.randn(rows, 24, generator=g) for _ in range(3))
        monitor = Monitor(every=1)
        for prediction, named in ((noise, True), (noise + 2 * target, False)):
            report = monitor(z=z, prediction=prediction, target=target)
            assert report is not None
            blind += named and report.verdict.startswith("blind")
            seeing += not named and report.healthy
    assert blind >= 95
    assert seeing >= 95


@pytest.mark.parametrize("rows", [2, 3, 7, 8, 100])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_encoder_that_gives_one_vector_is_named_at_any_size_of_batch(rows: int, value: float) -> None:
    report = Monitor(every=1)(z=torch.full((rows, 16), value))
    assert report is not None
    assert report.verdict.startswith("collapsed: ")


def test_statistics_that_an_infinite_batch_left_behind_are_named() -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder)
    monitor = Monitor(every=1)
    z = torch.randn(32, 8)
    assert monitor(z=z, encoder=encoder, target_encoder=target).healthy  # type: ignore[union-attr]
    encoder(torch.full((2, 3, 8, 8), math.inf))
    report = monitor(z=z, encoder=encoder, target_encoder=target)
    assert report is not None
    assert report.verdict == "broken: a batch norm of the encoders holds NaN or infinity"
    assert monitor(z=z).healthy  # type: ignore[union-attr]


def test_a_resumed_monitor_says_what_the_first_would_have(tmp_path: Any) -> None:
    g = torch.Generator().manual_seed(0)
    batches = [low_rank(rows, 256, rank) for rows, rank in ((600, 200), (30, 20), (600, 3), (600, 5), (600, 40))]
    target = torch.randn(600, 8, generator=g)
    whole = Monitor(every=1)
    for cut in range(5):
        first = Monitor(every=1)
        for z in batches[:cut]:
            first(z=z, state=z[:, :9], prediction=target[: len(z)], target=target[: len(z)])
        torch.save(first.state_dict(), tmp_path / "monitor.pt")
        second = Monitor(every=1)
        second.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
        assert list(second.history) == list(first.history)
        for z in batches[cut:]:
            second(z=z, state=z[:, :9], prediction=target[: len(z)], target=target[: len(z)])
        if cut == 0:
            whole = second
        assert list(second.history) == list(whole.history)
    assert {report.verdict.partition(":")[0] for report in whole.history} == {
        "ok",
        "collapsing",
        "recovering",
        "falling",
    }
    with pytest.raises(ValueError, match=r"has the keys step, highest, following, history; got step"):
        Monitor().load_state_dict({"step": 1})


def test_the_defaults_of_torch_change_nothing(torch_defaults: Any) -> None:
    z, target = torch.randn(40, 3, 8), torch.randn(40, 8)
    given: Any = {"z": z, "prediction": target + 1, "target": target}
    expected = Monitor(every=1)(**given)
    with torch_defaults():
        assert Monitor(every=1)(**given) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_reported_not_raised(value: float) -> None:
    z = torch.randn(8, 3, 4)
    z[1, 2, 3] = value
    monitor = Monitor(every=1)
    report = monitor(z=z, state=torch.randn(8, 5))
    assert report is not None
    assert report.verdict == "broken: z holds NaN or infinity"
    both = monitor(z=z, state=z[:, 2])
    assert both is not None
    assert both.verdict == "broken: z and state hold NaN or infinity"
    after = monitor(z=torch.randn(8, 3, 4))
    assert after is not None
    assert after.healthy


def test_the_numbers_are_those_of_the_functions() -> None:
    z, state = torch.rand(40, 3, 16), torch.randn(40, 8)
    prediction, target = torch.randn(40, 6), torch.randn(40, 6)
    report = Monitor(every=1)(z=z, state=state, prediction=prediction, target=target)
    assert report is not None
    assert report.z is not None
    assert report.state is not None
    for health, x in ((report.z, z.flatten(0, 1)), (report.state, state)):
        assert health.rank == pytest.approx(rankme(x))
        assert health.cosine == pytest.approx(mean_pairwise_cosine(x))
        assert health.deviation == pytest.approx(feature_deviation(x).mean().item())
        assert (health.rows, health.width) == tuple(x.shape)
    assert report.z.lidar == pytest.approx(lidar(z))
    assert report.state.lidar is None
    assert report.gap == pytest.approx(target_gap(prediction, target))
    assert report.drift is None
    assert asdict(report)["z"]["rank"] == report.z.rank


def test_dead_features_are_counted() -> None:
    z = torch.randn(50, 8)
    z[:, :2] = 0
    report = Monitor(every=1)(z=z)
    assert report is not None
    assert report.z is not None
    assert report.z.dead == 0.25
    assert "25% dead" in str(report)


def test_a_report_is_one_line() -> None:
    report = Monitor(every=1)(z=torch.randn(40, 3, 16), state=torch.randn(40, 8))
    line = str(report)
    assert "\n" not in line
    assert line.startswith("step 1 | z: rank ")
    assert " | state: rank " in line
    assert line.endswith(" | ok")


def test_it_reports_when_due_and_keeps_a_bounded_history() -> None:
    monitor = Monitor(every=3, history=2)
    got = [monitor(z=torch.randn(8, 4)) for _ in range(10)]
    assert [i + 1 for i, report in enumerate(got) if report] == [3, 6, 9]
    assert [report.step for report in monitor.history] == [6, 9]


def test_a_call_that_is_not_due_reads_nothing() -> None:
    meta = torch.randn(8, 4, device="meta")  # has no values to read
    monitor = Monitor(every=5)
    for _ in range(4):
        assert monitor(z=meta, state=meta, prediction=meta, target=meta) is None


def test_rows_bound_the_cost_and_keep_sources_whole() -> None:
    report = Monitor(every=1, rows=30)(z=torch.randn(40, 4, 16), state=torch.randn(40, 8))
    assert report is not None
    assert report.z is not None
    assert report.state is not None
    assert report.z.rows == 28
    assert report.state.rows == 30


def test_it_leaves_the_run_as_it_is() -> None:
    z = torch.randn(8, 3, 4, requires_grad=True)
    before = torch.get_rng_state()
    Monitor(every=1)(z=z, state=z[:, 0])
    assert torch.equal(torch.get_rng_state(), before)
    z.sum().backward()
    half = Monitor(every=1)(z=torch.randn(64, 16).bfloat16())
    assert half is not None
    assert half.healthy
    with torch.autocast("cpu", torch.bfloat16):
        exact = Monitor(every=1)(z=z)
    again = Monitor(every=1)(z=z)
    assert exact == again


def test_thresholds_are_settings() -> None:
    z = torch.rand(64, 16)
    strict = Monitor(every=1, thresholds=Thresholds(cosine=0.5))(z=z)
    assert strict is not None
    assert strict.verdict.startswith("collapsed: all z point one way")
    assert Monitor(every=1)(z=z).healthy  # type: ignore[union-attr]


def test_wrong_input_is_refused() -> None:
    x = torch.randn(8, 4)
    wrong: list[dict[str, Any]] = [{"every": 0}, {"history": 0}, {"rows": 1}]
    for settings in wrong:
        with pytest.raises(ValueError, match=r"every and history must be at least 1, and rows at least 2; got"):
            Monitor(**settings)
    with pytest.raises(ValueError, match=r"needs something to look at"):
        Monitor(every=1)()
    with pytest.raises(ValueError, match=r"prediction and target are compared, so both must be given"):
        Monitor(every=1)(prediction=x)
    with pytest.raises(ValueError, match=r"encoder and target_encoder are compared, so both must be given"):
        Monitor(every=1)(z=x, encoder=TinyEncoder())
    with pytest.raises(ValueError, match=r"one shape, \(B, D\); got \(8, 4\) and \(8, 3\)"):
        Monitor(every=1)(prediction=x, target=x[:, 1:])
    with pytest.raises(ValueError, match=r"one shape, \(B, D\); got \(8, 4\) and \(7, 4\)"):
        Monitor(every=1)(prediction=x, target=x[1:])
    with pytest.raises(ValueError, match=r"z must be \(B, T, D\) or \(B, D\) with B at least 2; got shape \(8,\)"):
        Monitor(every=1)(z=x[:, 0])
    with pytest.raises(ValueError, match=r"state must be \(B, D\) with B at least 2; got shape \(1, 4\)"):
        Monitor(every=1)(state=x[:1])
    with pytest.raises(TypeError, match=r"z must be floating point; got torch.int64"):
        Monitor(every=1)(z=x.long())
    with pytest.raises(TypeError, match=r"state must be a torch.Tensor; got list"):
        Monitor(every=1)(state=x.tolist())  # type: ignore[arg-type]


def directions(rank: int, rows: int = 600, width: int = 256) -> Tensor:
    """Rows of that effective rank: so many directions, all alike."""
    return torch.linalg.qr(torch.randn(rows, rank)).Q @ torch.linalg.qr(torch.randn(width, rank)).Q.mT


def of_cosine(cosine: float) -> Tensor:
    """Rows of that mean pairwise cosine: isotropic around a common part."""
    common = (64 * cosine / (1 - cosine)) ** 0.5 * F.normalize(torch.randn(64), dim=0)
    return common + torch.randn(600, 64)


def predictions_of_gap(gap: float) -> dict[str, Any]:
    target, noise = torch.randn(2048, 512), torch.randn(2048, 512)
    return {"target": target, "prediction": noise + gap / (1 - gap**2) ** 0.5 * target}


def encoders_apart(drift: float) -> dict[str, Any]:
    encoder = TinyEncoder()
    target = EMATarget(encoder)
    for name in ("bn1", "bn2", "bn3"):
        norm = getattr(encoder, name)
        getattr(target.encoder, name).running_mean += drift * (norm.running_var + norm.eps).sqrt()
    return {"encoder": encoder, "target_encoder": target}


@pytest.mark.parametrize(
    ("given", "wrong", "right", "verdict"),
    [
        (lambda rank: {"z": directions(rank)}, 12, 14, "collapsing: z"),  # 5 % of 256 is 12.8
        (lambda rank: {"z": directions(rank, width=16)}, 1, 3, "collapsing: z"),  # never below 2
        (lambda cosine: {"z": of_cosine(cosine)}, 0.993, 0.985, "collapsed: all z"),
        (predictions_of_gap, 0.0045, 0.0095, "blind"),  # 0.005, and two errors of 0.001
        (encoders_apart, 1.05, 0.95, "drifting"),
    ],
)
def test_the_verdict_turns_where_the_thresholds_say(given: Any, wrong: Any, right: Any, verdict: str) -> None:
    assert Monitor(every=1)(**given(wrong)).verdict.startswith(verdict)  # type: ignore[union-attr]
    assert Monitor(every=1)(**given(right)).verdict == "ok"  # type: ignore[union-attr]


def test_a_quarter_of_the_highest_rank_is_a_fall_and_more_is_none() -> None:
    monitor = Monitor(every=1)
    verdicts = [monitor(z=directions(rank)).verdict for rank in (100, 28, 23)]  # type: ignore[union-attr]
    assert verdicts == ["ok", "ok", "falling: z has effective rank 23 of 256, 100 at step 1"]


def test_a_tenth_more_directions_are_a_recovery_and_fewer_are_none() -> None:
    monitor = Monitor(every=1)
    words = [
        monitor(z=directions(rank, width=512)).verdict.partition(":")[0]  # type: ignore[union-attr]
        for rank in (10, 12, 13)
    ]
    assert words == ["collapsing", "recovering", "collapsing"]


def test_a_limit_that_is_met_is_not_passed() -> None:
    target = torch.randn(64, 16)
    given: dict[str, Any] = {
        "z": of_cosine(0.5), "prediction": target + torch.randn(64, 16), "target": target, **encoders_apart(0.5)
    }  # fmt: skip
    seen = Monitor(every=1)(**given)
    assert seen is not None
    assert seen.z is not None
    assert seen.gap is not None
    assert seen.gap_error is not None
    assert seen.drift is not None
    met = Thresholds(cosine=seen.z.cosine, gap=seen.gap - 2 * seen.gap_error - 1e-9, drift=seen.drift)
    assert Monitor(every=1, thresholds=met)(**given).healthy  # type: ignore[union-attr]
    for passed in (
        replace(met, cosine=met.cosine - 1e-6), replace(met, gap=met.gap + 1e-6), replace(met, drift=met.drift - 1e-6)
    ):  # fmt: skip
        assert not Monitor(every=1, thresholds=passed)(**given).healthy  # type: ignore[union-attr]


def test_few_directions_are_named_from_eight_rows_on() -> None:
    verdicts = [Monitor(every=1)(z=directions(1, rows, 16)).verdict for rows in (7, 8)]  # type: ignore[union-attr]
    assert verdicts == ["ok", "collapsing: z has effective rank 1 of 16"]


def test_unless_told_otherwise_every_hundredth_call_is_a_report() -> None:
    monitor, z = Monitor(), torch.randn(8, 4)
    assert [i for i in range(1, 202) if monitor(z=z)] == [100, 200]


# --- a target that does not move ---


def move(module: nn.Module, by: float = 1e-3) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


def verdicts(
    target: nn.Module, encoder: nn.Module, *, steps: int = 6, every: int = 1, forgets: bool = False,
    watched: nn.Module | None = None, monitor: Monitor | None = None,
) -> list[str]:  # fmt: skip
    """Of a run whose encoder moves at every step."""
    monitor = Monitor(every) if monitor is None else monitor
    found = []
    for _ in range(steps):
        move(encoder)
        if not forgets:
            target.update(encoder)  # type: ignore[operator]
        watched = target if watched is None else watched
        report = monitor(z=torch.randn(32, 8), encoder=encoder, target_encoder=watched)
        found += [] if report is None else [report.verdict]
    return found


NEVER = "still: the target has not moved since step 1, and the encoder has; call model.update_target() after each"


@pytest.mark.parametrize("buffers", ["own", "copy", "ema"])
@pytest.mark.parametrize("of_the_encoder_alone", [False, True])
def test_a_target_that_is_never_updated_is_named_from_the_third_report_on(
    buffers: Any, of_the_encoder_alone: bool
) -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder, buffers=buffers)
    watched = target.encoder if of_the_encoder_alone else target
    found = verdicts(target, encoder, forgets=True, watched=watched)
    assert found[:2] == ["ok", "ok"]
    assert all(verdict.startswith(NEVER) for verdict in found[2:])


def test_a_forgotten_update_is_named_in_a_real_loop_and_healed_by_the_call() -> None:
    torch.manual_seed(0)
    model = SeqJEPA.from_encoder(encoder_of(32), action_dim=2, view_shape=(1, 12, 12))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    monitor, found = Monitor(every=5), []
    for step, (views, actions) in enumerate(batches(25)):
        out = model(views, actions)  # the target's batch norms see it, too: they are not its weights
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 20:
            model.update_target()
        report = monitor(z=out.z, encoder=model.encoder, target_encoder=model.target)
        found += [] if report is None else [report.verdict.partition(":")[0]]
    assert found == ["ok", "ok", "still", "still", "ok"]


@pytest.mark.parametrize(
    "momentum",
    [0.996, 0.9999, 1.0, 1 - 1e-12, CosineSchedule(0.996, 1.0, 6), CosineSchedule(1 - 1e-9, 1.0, 6), lambda step: 1.0],
)
def test_a_momentum_near_1_is_no_forgotten_update(momentum: Any) -> None:
    encoder = TinyEncoder()
    assert set(verdicts(EMATarget(encoder, momentum), encoder)) == {"ok"}


@pytest.mark.parametrize("target", [StopGradientTarget, OnlineTarget])
def test_a_target_that_is_the_encoder_itself_is_no_forgotten_update(target: Any) -> None:
    encoder = TinyEncoder()
    report = Monitor(every=1)(z=torch.randn(32, 8), encoder=encoder, target_encoder=target(encoder))
    assert report is not None
    assert report.drift is None
    for watched in (target(encoder), encoder):
        assert set(verdicts(target(encoder), encoder, watched=watched)) == {"ok"}


def test_where_the_encoder_does_not_move_neither_need_the_target() -> None:
    encoder, monitor = TinyEncoder(), Monitor(every=1)
    target = EMATarget(encoder)
    for _ in range(6):  # frozen; or between the steps of an optimiser that accumulates
        assert monitor(z=torch.randn(32, 8), encoder=encoder, target_encoder=target).healthy  # type: ignore[union-attr]


def test_a_target_whose_weights_rest_after_they_moved_is_not_named() -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder, 0.9)
    monitor = Monitor(every=1)
    assert set(verdicts(target, encoder, watched=target.encoder, monitor=monitor)) == {"ok"}
    assert set(verdicts(target, encoder, watched=target.encoder, monitor=monitor, forgets=True)) == {"ok"}


def test_how_long_a_target_may_rest_is_a_threshold() -> None:
    encoder = TinyEncoder()
    monitor = Monitor(every=1, thresholds=Thresholds(still=4))
    found = verdicts(EMATarget(encoder), encoder, forgets=True, monitor=monitor)
    assert [verdict.partition(":")[0] for verdict in found] == ["ok"] * 4 + ["still"] * 2


def test_a_monitor_that_goes_on_remembers_when_it_saw_the_target_first() -> None:
    encoder = TinyEncoder()
    target, first, second = EMATarget(encoder), Monitor(every=1), Monitor(every=1)
    verdicts(target, encoder, steps=2, forgets=True, monitor=first)
    second.load_state_dict(first.state_dict())
    (found,) = verdicts(target, encoder, steps=1, forgets=True, monitor=second)
    assert found.startswith(NEVER)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_of_one_weight_tells_that_an_encoder_moved(kind: torch.dtype) -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 5)).to(kind).to(memory_format=torch.channels_last)
    before = fingerprint(encoder)
    assert before is not None
    assert torch.equal(before, fingerprint(copy.deepcopy(encoder)))  # type: ignore[arg-type]
    for parameter in encoder.parameters():
        with torch.no_grad():
            one = parameter.view(-1) if parameter.is_contiguous() else parameter[0, 0, 0]
            one[0] = 1.01 * one[0] + 0.01
        after = fingerprint(encoder)
        assert after is not None
        assert before != after
        before = after
    assert fingerprint(nn.ReLU()) is None


def test_encoders_without_batch_norm_have_no_drift_and_are_watched_all_the_same() -> None:
    encoder = nn.Linear(4, 4)
    target = EMATarget(encoder)
    report = Monitor(every=1)(encoder=encoder, target_encoder=target)
    assert report is not None
    assert report.drift is None
    assert report.healthy
    assert verdicts(target, encoder, forgets=True)[-1].startswith(NEVER)
    with pytest.raises(ValueError, match=r"batch norms of two encoders of one architecture.* got 3 and 0 batch norms"):
        Monitor(every=1)(encoder=TinyEncoder(), target_encoder=nn.Linear(2, 2))
