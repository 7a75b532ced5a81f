"""Is it collapsing? A line every so many steps of a training loop, for z and state apart, with a plain verdict."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import check_floating, check_tensor
from seqjepa.distributed import gather
from seqjepa.evaluation._following import Following, fingerprint, mark_of
from seqjepa.evaluation._health import Health, MonitorReport, Thresholds, plus_minus
from seqjepa.evaluation._statistics import plain_arithmetic
from seqjepa.evaluation.collapse import (
    cross_cosine,
    discriminant_spectrum,
    drift_of,
    gap_of,
    gram_spectrum,
    has_statistics,
    rank_of,
    relative_deviation,
)

__all__ = ["Health", "Monitor", "MonitorReport", "Thresholds"]

EPS, DELTA = 1e-7, 1e-4  # those of RankMe and of LiDAR
# What a number without a value says is broken.
SOURCE = {"gap": "prediction", "gap_error": "prediction", "drift": "a batch norm of the encoders"}


class Monitor:
    """Look at a training run every so many steps, and say in words whether its representations collapse.

    Nothing of the loop is known or touched. A call that is not due costs an increment, and never waits for the device.
    A due one costs some tens of milliseconds: the eigenvalues of a Gram matrix for z and for the state.

    The verdict is the first of these that holds; see [`Thresholds`][seqjepa.evaluation.Thresholds]:

    - *broken*: NaN or infinity, in what is looked at or in the running statistics of a batch norm;
    - *still*: the encoder moves and the target never did, since its `update` is not called;
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
        self._following = Following()

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
            encoder: for the drift of batch norms, where there are any, and to tell whether the target moves; with
                `target_encoder`.
            target_encoder: the target, such as `model.target`, or the encoder that it holds. One that is the encoder
                itself ([`StopGradientTarget`][seqjepa.StopGradientTarget]) has no drift.

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
            "following": self._following.state_dict(),
            "history": [asdict(report) for report in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the monitor that was saved would; the settings are those of this one.

        Raises:
            ValueError: keys that are missing or unknown.
        """
        if state.keys() != {"step", "highest", "following", "history"}:
            raise ValueError(
                "A monitor's state has the keys step, highest, following, history; got "
                f"{', '.join(map(str, state)) or 'none'}."
            )
        reports = [_report_of(report) for report in state["history"]]
        self.step = int(state["step"])
        self._highest = {name: [(*one,) for one in found] for name, found in state["highest"].items()}
        self._following.load_state_dict(state["following"])
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
                for name, number in self._of_encoders(encoder, target_encoder).items():
                    number = number.to(device)
                    values[name] = gather(number[None]).amax() if self.over_ranks else number  # NaN of one is of all
            numbers = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}
        broken = sorted({SOURCE.get(key, key.partition(".")[0]) for key in values if not math.isfinite(numbers[key])})
        if broken:
            return _broken(self.step, broken)
        healths = {name: _health(name, x, numbers) for name, x in tensors.items() if name in ("z", "state")}
        if "following.target" in numbers:
            self._following.look(numbers["following.encoder"], numbers["following.target"], self.step)
        gap, drift, error = numbers.get("gap"), numbers.get("drift"), numbers.get("gap_error")
        verdict = self._judge(healths, gap, error, drift)
        for name, health in healths.items():
            self._remember(name, health)
        return MonitorReport(self.step, verdict, healths.get("z"), healths.get("state"), gap, drift, error)

    def _of_encoders(self, encoder: nn.Module, target_encoder: nn.Module) -> dict[str, Tensor]:
        """The drift, where there are batch norms, and the weights, as long as the target was not seen to move."""
        found: dict[str, Tensor] = {}
        if not self._following.moved:
            weights, mark = fingerprint(encoder), mark_of(target_encoder)
            if weights is not None and mark is not None:
                found |= {"following.encoder": weights, "following.target": mark}
        its_own = any(True for _ in target_encoder.parameters())
        if its_own and (has_statistics(encoder) or has_statistics(target_encoder)):
            found["drift"] = drift_of(encoder, target_encoder)
        return found

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
        if self._following.alone >= limits.still and not self._following.moved:
            return (
                f"still: the target has not moved since step {self._following.since}, and the encoder has; call "
                "model.update_target() after each optimiser step"
            )
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
            found = f"gap {gap:.3f}{plus_minus(gap_error)}"
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
