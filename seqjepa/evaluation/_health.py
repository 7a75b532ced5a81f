"""What a monitor says: the health of a representation, a report in one line, and where the verdict turns."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Health", "MonitorReport", "Thresholds", "plus_minus"]


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
        still: still at so many reports before which the encoder moved and the target never did.

    Examples:
        >>> Thresholds().rank
        0.05
    """

    rank: float = 0.05
    fall: float = 0.25
    cosine: float = 0.99
    gap: float = 0.005
    drift: float = 1.0
    still: int = 2


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
        parts += [] if self.gap is None else [f"gap {self.gap:.3f}" + plus_minus(self.gap_error)]
        parts += [] if self.drift is None else [f"drift {self.drift:.2f}"]
        return " | ".join([*parts, self.verdict])


def plus_minus(error: float | None) -> str:
    """A standard error as it stands behind its number."""
    return "" if error is None else f" ± {error:.3f}"
