"""Is it collapsing? A line every so many steps of a training loop, for z and state apart, with a plain verdict."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import check_floating, check_tensor
from seqjepa.distributed import gather
from seqjepa.evaluation._statistics import plain_arithmetic
from seqjepa.evaluation.collapse import (
    cross_cosine,
    discriminant_spectrum,
    drift_of,
    gap_of,
    gram_spectrum,
    rank_of,
    relative_deviation,
)

__all__ = ["Health", "Monitor", "MonitorReport", "Thresholds"]

EPS, DELTA = 1e-7, 1e-4  # those of RankMe and of LiDAR
# What a number without a value says is broken.
SOURCE = {"gap": "prediction", "gap_error": "prediction", "drift": "a batch norm of the encoders"}


@dataclass(frozen=True)
class Thresholds:
    """Where the verdict turns. Calibrated on small runs that trained well, collapsed, or lost some directions.

    There, z of healthy runs kept a rank of a quarter of its width, a cosine of 0.7–0.86 and a drift up to 0.5; with
    gradient through the target the gap was gone after 20 steps and the cosine passed 0.99 after 50, while the *state*
    and LiDAR went on looking healthy.

    Attributes:
        rank: collapsing below this share of min(rows, width), and below 2 in any case.
        fall: falling below this share of the highest rank so far.
        cosine: collapsed above this mean pairwise cosine.
        gap: blind below this gap between own and shuffled targets, give or take two of its standard errors.
        drift: drifting above this distance of batch-norm statistics, in deviations.

    Examples:
        >>> Thresholds().rank
        0.05
    """

    rank: float = 0.05
    fall: float = 0.25
    cosine: float = 0.99
    gap: float = 0.005
    drift: float = 1.0


@dataclass(frozen=True)
class Health:
    """How one representation is spread over a batch.

    Attributes:
        rank: [`rankme`][seqjepa.evaluation.rankme], from 1 to min(rows, width).
        width: D.
        rows: rows that were looked at.
        deviation: mean of [`feature_deviation`][seqjepa.evaluation.feature_deviation], in [0, 1].
        dead: share of features with a deviation below 0.01.
        cosine: [`mean_pairwise_cosine`][seqjepa.evaluation.mean_pairwise_cosine].
        lidar: [`lidar`][seqjepa.evaluation.lidar] over the views of each source, or None for one view a source.

    Examples:
        >>> print(Health(rank=17.04, width=64, rows=384, deviation=0.47, dead=0.0, cosine=0.8, lidar=11.0))
        rank 17.0 of 64, lidar 11.0, deviation 0.47, cosine 0.80
    """

    rank: float
    width: int
    rows: int
    deviation: float
    dead: float
    cosine: float
    lidar: float | None = None

    def __str__(self) -> str:
        """One clause."""
        lidar = "" if self.lidar is None else f", lidar {self.lidar:.1f}"
        dead = f", {self.dead:.0%} dead" if self.dead else ""
        spread = f"deviation {self.deviation:.2f}, cosine {self.cosine:.2f}"
        return f"rank {self.rank:.1f} of {self.width}{lidar}, {spread}{dead}"


@dataclass(frozen=True)
class MonitorReport:
    """What a monitor saw at one step; `print` gives one line.

    Attributes:
        step: calls of the monitor so far.
        verdict: "ok", or what is wrong, in words.
        z: health of the equivariant representation, or None.
        state: health of the invariant one, or None.
        gap: [`target_gap`][seqjepa.evaluation.target_gap], or None.
        gap_error: its standard error over draws of the rows, or None.
        drift: [`batch_norm_drift`][seqjepa.evaluation.batch_norm_drift], or None.

    Examples:
        >>> print(MonitorReport(step=100, verdict="ok", gap=0.15))
        step 100 | gap 0.150 | ok
    """

    step: int
    verdict: str
    z: Health | None = None
    state: Health | None = None
    gap: float | None = None
    drift: float | None = None
    gap_error: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict == "ok"

    def __str__(self) -> str:
        """One line."""
        parts = [f"step {self.step}"]
        parts += [f"{name}: {health}" for name, health in (("z", self.z), ("state", self.state)) if health]
        parts += [] if self.gap is None else [f"gap {self.gap:.3f}" + _plus_minus(self.gap_error)]
        parts += [] if self.drift is None else [f"drift {self.drift:.2f}"]
        return " | ".join([*parts, self.verdict])


class Monitor:
    """Look at a training run every so many steps, and say in words whether its representations collapse.

    Nothing of the loop is known or touched. A call that is not due costs an increment, and never waits for the device.
    A due one costs some tens of milliseconds: the eigenvalues of a Gram matrix for z and for the state.

    The verdict is the first of these that holds; see [`Thresholds`][seqjepa.evaluation.Thresholds]:

    - *broken*: NaN or infinity, in what is looked at or in the running statistics of a batch norm;
    - *collapsed*: all rows point one way (mean pairwise cosine), or no feature varies;
    - *collapsing*: few directions are left (effective rank), or *recovering*, if there are 10 % more than at the last
      report;
    - *falling*: the effective rank is a small part of what it was in a batch of as many rows, or fewer;
    - *blind*: predictions fit shuffled targets as well as their own, as far as so many rows can tell;
    - *drifting*: the target's batch norm has left the encoder's behind;
    - *ok*.

    "ok" means none of these, no more: a shortcut keeps its rank. z is judged before the state, since it collapses
    first; the state passes a normalisation that spreads whatever is left.

    Args:
        every: report at every such call.
        history: reports kept in `.history`, the latest.
        rows: rows looked at, the first of the batch; bounds the cost.
        thresholds: where the verdict turns.
        over_ranks: look at the rows of all ranks together, with torch.distributed: what is given is gathered when it is
            due, rank 0's rows first, and every rank makes the report that one process would of the whole batch. Call
            it on all ranks. The drift is the largest of the ranks'. Without it each rank reports on its own rows.

    Raises:
        ValueError: a setting below 1; nothing to look at; shapes that do not fit.

    Examples:
        >>> import torch
        >>> monitor = Monitor(every=2)
        >>> z = torch.randn(64, 1, 2) @ torch.randn(2, 32)                     # two directions of 32
        >>> for step in range(2):
        ...     report = monitor(z=z)
        >>> report.verdict
        'collapsing: z has effective rank 2 of 32'
    """

    def __init__(
        self, every: int = 100, *, history: int = 1000, rows: int = 2048, thresholds: Thresholds | None = None,
        over_ranks: bool = False,
    ) -> None:  # fmt: skip
        if every < 1 or history < 1 or rows < 2:
            raise ValueError(
                f"every and history must be at least 1, and rows at least 2; got {every}, {history} and {rows}."
            )
        self.every, self.rows, self.over_ranks = every, rows, over_ranks
        self.thresholds = Thresholds() if thresholds is None else thresholds
        self.step = 0
        self.history: deque[MonitorReport] = deque(maxlen=history)
        # Of each representation the highest ranks: rows, rank, step. More rows are kept only with a higher rank.
        self._highest: dict[str, list[tuple[int, float, int]]] = {}

    def __call__(
        self,
        *,
        z: Float[Tensor, "B *T D"] | None = None,
        state: Float[Tensor, "B S"] | None = None,
        prediction: Float[Tensor, "B P"] | None = None,
        target: Float[Tensor, "B P"] | None = None,
        encoder: nn.Module | None = None,
        target_encoder: nn.Module | None = None,
    ) -> MonitorReport | None:
        """Count a step, and report if it is due.

        Args:
            z: (B, T, D) or (B, D); with several views a source LiDAR is reported too.
            state: (B, S).
            prediction: (B, D), for the gap; with `target`.
            target: (B, D).
            encoder: for the drift of batch norms; with `target_encoder`.
            target_encoder: the target encoder, or the target that holds it.

        Returns:
            A [`MonitorReport`][seqjepa.evaluation.MonitorReport] at every `every`-th call, None at the others.
        """
        self.step += 1
        if self.step % self.every:
            return None
        _check_pairs(prediction, target, encoder, target_encoder)
        given = {"z": z, "state": state, "prediction": prediction, "target": target}
        tensors = {name: self._rows(name, x) for name, x in given.items() if x is not None}
        if not tensors and encoder is None:
            raise ValueError(
                "The monitor needs something to look at: z=, state=, prediction= with target=, or encoders."
            )
        if "prediction" in tensors and tensors["prediction"].shape != tensors["target"].shape:
            raise ValueError(
                "Prediction and target must have one shape, (B, D); got "
                f"{tuple(tensors['prediction'].shape)} and {tuple(tensors['target'].shape)}."
            )
        broken = _not_finite(tensors)
        report = _broken(self.step, broken) if broken else self._report(tensors, encoder, target_encoder)
        self.history.append(report)
        return report

    def state_dict(self) -> dict[str, Any]:
        """All that later reports depend on, and those in `.history`, as plain values for a checkpoint."""
        return {
            "step": self.step,
            "highest": {name: list(found) for name, found in self._highest.items()},
            "history": [asdict(report) for report in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the monitor that was saved would; the settings are those of this one.

        Raises:
            ValueError: keys that are missing or unknown.
        """
        if state.keys() != {"step", "highest", "history"}:
            raise ValueError(
                f"A monitor's state has the keys step, highest, history; got {', '.join(map(str, state)) or 'none'}."
            )
        reports = [_report_of(report) for report in state["history"]]
        self.step = int(state["step"])
        self._highest = {name: [(*one,) for one in found] for name, found in state["highest"].items()}
        self.history = deque(reports, maxlen=self.history.maxlen)

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """The first rows, detached, in float32 or wider; whole sources of z."""
        check_tensor(name, x)
        check_floating(name, x)
        well_formed = x.ndim in ((2, 3) if name == "z" else (2,)) and 0 not in x.shape[1:]
        most = max(2, self.rows // (x.shape[1] if x.ndim == 3 else 1)) if well_formed else 0
        if well_formed and self.over_ranks:
            x = gather(x.detach()[:most])
        if not well_formed or len(x) < 2:
            axes = "(B, T, D) or (B, D)" if name == "z" else "(B, D)"
            raise ValueError(f"{name} must be {axes} with B at least 2; got shape {tuple(x.shape)}.")
        return x.detach()[:most].to(torch.promote_types(x.dtype, torch.float32))

    def _report(
        self, tensors: dict[str, Tensor], encoder: nn.Module | None, target_encoder: nn.Module | None
    ) -> MonitorReport:
        """Measure everything, move it from the device at once, and judge."""
        values: dict[str, Tensor] = {}
        device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
        with plain_arithmetic(device):
            for name in ("z", "state"):
                if name in tensors:
                    values |= {f"{name}.{key}": value for key, value in _measure(tensors[name]).items()}
            if "prediction" in tensors:
                values["gap"], values["gap_error"] = gap_of(tensors["prediction"], tensors["target"])
            if encoder is not None and target_encoder is not None:
                apart = drift_of(encoder, target_encoder).to(device)
                values["drift"] = gather(apart[None]).amax() if self.over_ranks else apart  # NaN of one is NaN of all
            numbers = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        broken = sorted({SOURCE.get(key, key.partition(".")[0]) for key in values if not math.isfinite(numbers[key])})
        if broken:
            return _broken(self.step, broken)
        healths = {name: _health(name, x, numbers) for name, x in tensors.items() if name in ("z", "state")}
        gap, drift, error = numbers.get("gap"), numbers.get("drift"), numbers.get("gap_error")
        verdict = self._judge(healths, gap, error, drift)
        for name, health in healths.items():
            self._remember(name, health)
        return MonitorReport(self.step, verdict, healths.get("z"), healths.get("state"), gap, drift, error)

    def _remember(self, name: str, health: Health) -> None:
        """Keep a rank that is the highest of all with as many rows or fewer, and none that it surpasses."""
        kept = self._highest.setdefault(name, [])
        if all(rank < health.rank for rows, rank, _ in kept if rows <= health.rows):
            kept[:] = [(rows, rank, step) for rows, rank, step in kept if rows < health.rows or rank > health.rank]
            kept.append((health.rows, health.rank, self.step))

    def _judge(
        self, healths: dict[str, Health], gap: float | None, gap_error: float | None, drift: float | None
    ) -> str:
        limits = self.thresholds
        last = self.history[-1] if self.history else None
        for name, health in healths.items():
            if health.cosine > limits.cosine:
                return f"collapsed: all {name} point one way (mean cosine {health.cosine:.3f})"
            if health.dead == 1:
                return f"collapsed: {name} is the same in every row"
        for name, health in healths.items():
            most, rank = min(health.rows, health.width), f"effective rank {health.rank:.0f} of {health.width}"
            if most >= 8 and health.rank < max(2.0, limits.rank * most) * (1 + 1e-3):
                before = getattr(last, name, None)
                if before is not None and health.rank > 1.1 * before.rank:
                    return f"recovering: {name} has {rank}, {before.rank:.0f} at the last report"
                return f"collapsing: {name} has {rank}"
        for name, health in healths.items():
            # The rank grows with the rows: a smaller batch is not held to what a larger one had.
            comparable = [(rank, step) for rows, rank, step in self._highest.get(name, []) if rows <= health.rows]
            highest, step = max(comparable, default=(0.0, 0))
            if health.rank < limits.fall * highest:
                rank = f"effective rank {health.rank:.0f} of {health.width}"
                return f"falling: {name} has {rank}, {highest:.0f} at step {step}"
        if gap is not None and gap_error is not None and gap < limits.gap + 2 * gap_error:
            found = f"gap {gap:.3f}{_plus_minus(gap_error)}"
            return f"blind: predictions fit shuffled targets as well as their own ({found})"
        if drift is not None and drift > limits.drift:
            return f"drifting: the target's batch norm is {drift:.1f} deviations from the encoder's"
        return "ok"


def _broken(step: int, names: list[str]) -> MonitorReport:
    verb = "hold" if len(names) > 1 else "holds"
    return MonitorReport(step, f"broken: {' and '.join(names)} {verb} NaN or infinity")


def _report_of(saved: Mapping[str, Any]) -> MonitorReport:
    fields: dict[str, Any] = {key: Health(**v) if isinstance(v, Mapping) else v for key, v in saved.items()}
    return MonitorReport(**fields)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.3f}"


def _measure(x: Tensor) -> dict[str, Tensor]:
    """The measures of one representation, as tensors on its device."""
    flat = x.flatten(0, -2).double()
    u, deviation = F.normalize(flat, dim=1), relative_deviation(flat)
    found = {
        "rank": rank_of(gram_spectrum(flat), EPS),
        "deviation": deviation.mean(),
        "dead": (deviation < 0.01).double().mean(),
        "cosine": cross_cosine(u, u),
    }
    if x.ndim == 3 and x.shape[1] > 1:
        found["lidar"] = rank_of(discriminant_spectrum(x, DELTA), EPS)
    return found


def _health(name: str, x: Tensor, numbers: dict[str, float]) -> Health:
    mine = {key.partition(".")[2]: value for key, value in numbers.items() if key.startswith(f"{name}.")}
    return Health(width=x.shape[-1], rows=x.flatten(0, -2).shape[0], **mine)


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """The names of those that hold NaN or infinity, in one transfer."""
    if not tensors:
        return []
    flags = torch.stack([torch.isfinite(x).all() for x in tensors.values()]).tolist()
    return [name for name, finite in zip(tensors, flags, strict=True) if not finite]


def _check_pairs(prediction: object, target: object, encoder: object, target_encoder: object) -> None:
    for (name, one), (other, two) in (
        (("prediction", prediction), ("target", target)),
        (("encoder", encoder), ("target_encoder", target_encoder)),
    ):
        if (one is None) != (two is None):
            raise ValueError(f"{name} and {other} are compared, so both must be given; got only one of them.")
