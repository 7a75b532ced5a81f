"""The measures of a scorecard, one after the other; one that cannot be made does not cost the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._coordinates import rotation_columns
from seqjepa.evaluation._fits import TransformationFit
from seqjepa.evaluation._frozen import Remembering
from seqjepa.evaluation._inputs import check_features
from seqjepa.evaluation.accuracy import Top1, top1
from seqjepa.evaluation.collapse import feature_deviation, lidar, mean_pairwise_cosine, rankme
from seqjepa.evaluation.composition import composition_error
from seqjepa.evaluation.draws import redraw
from seqjepa.evaluation.features import Features, occurrence
from seqjepa.evaluation.invariance import Invariance, invariance
from seqjepa.evaluation.paths import LEVELS, MODEL_VARIANTS, path_integration
from seqjepa.evaluation.retrieval import action_retrieval, prediction_retrieval_error
from seqjepa.evaluation.shuffles import Sensitivity, sensitivity
from seqjepa.evaluation.states import aggregate_states
from seqjepa.evaluation.transformations import TransformationProbes, TransformationR2, state_transformation_r2

__all__ = ["MEASURES", "Measuring"]

MEASURES = (
    "top1", "transformations", "from_states", "invariance", "paths", "retrieval", "pre", "sensitivity", "composition",
    "out_of_distribution", "collapse",
)  # fmt: skip
LEFT_OUT = "left out, as asked"
UNKNOWN = (
    "the absolute parameters are not known as elements of the group, whose differences are the actions; give them as "
    "ViewSequence(views, actions, parameters)"
)
Result = TypeVar("Result")


@dataclass
class Measuring:
    """What measures are made of, and why those are missing that are.

    Attributes:
        model: out of its wrappers.
        train: features of the training sequences.
        test: features of the test sequences.
        lengths: M_val of the state's accuracy.
        hidden: widths of the regressions' hidden layers.
        max_sequences: how many training sequences regressions from states are fitted to.
        path_rows: how many sequences path integration is fitted to, drawn anew from the views of each source; None for
            `max_sequences` as they are.
        seed: of everything that is drawn.
        begin: called with the name of what is measured next.
        levels: whether to measure what exact actions tell, which is the same for every model.
        leave_out: measures of `MEASURES` that are not wanted.
        skipped: measure → why it was not made.
    """

    model: Any
    train: Features
    test: Features
    lengths: Sequence[int]
    hidden: Sequence[int]
    max_sequences: int
    path_rows: int | None
    seed: int
    begin: Callable[[str], None]
    levels: bool = True
    leave_out: Collection[str] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        alone = self.train.e is None or self.test.e is None
        self.views = self.test.num_views
        self.no_model = "an encoder alone: give a model with embed, aggregate, predict and target" if alone else ""
        self.no_target = self.no_model or ("" if self.test.target is not None else "a model without target and predict")
        self.no_group = self._without("group", "do not know their group: see ViewSequence.group")
        self.no_labels = self._without("labels", "have no labels")

    def _without(self, name: str, words: str) -> str:
        """Why something is missing that both sets must know, or nothing."""
        lacking = [of for of in ("train", "test") if getattr(getattr(self, of), name) is None]
        which = {"train": "training ", "test": "test "}[lacking[0]] if len(lacking) == 1 else ""
        return f"the {which}sequences {words}" if lacking else ""

    def all(self, ood: Callable[[], Features] | None) -> dict[str, Any]:
        """Every measure, by its name on the card, and the state that the figure draws."""
        few = self.train.draw(self.max_sequences, seed=self.seed)
        others = self.test.draw(max(2, self.max_sequences // 2), seed=self.seed)
        self.model = Remembering(self.model, of=(self.train, self.test, few, others))
        settings: dict[str, Any] = {"hidden": self.hidden, "seed": self.seed}
        of_z = TransformationProbes(self.train, **settings)
        made: dict[str, Any] = {
            "top1": self._top1(),
            "transformations": self._make("transformations", self.no_group, lambda: of_z.read(self.test)),
            "from_states": self._from_states(few, others, settings),
            "invariance": self._invariance(few, others, settings),
            "paths": self._paths(few, others, settings),
            "retrieval": self._make(
                "retrieval",
                self.no_target or self.no_group,
                lambda: action_retrieval(self.model, self.test, seed=self.seed),
            ),
            "pre": self._pre(),
            "sensitivity": self._sensitivity(few, others, settings),
            "composition": self._composition(),
        }
        outside = "" if ood is not None else "no sequences out of distribution were given"
        made["out_of_distribution"] = self._make(
            "out_of_distribution",
            self.no_group or outside,
            lambda: None if ood is None else of_z.read(ood()),
        )
        made["states"] = self._part("states", self.no_model, self._states)
        made["collapse"] = self._collapse(made["states"])
        self._note_individual(made)
        self._note_left_out(made)
        return made

    def _make(self, name: str, reason: str, work: Callable[[], Result]) -> Result | None:
        self.begin(name)
        return self._part(name, reason, work)

    def _part(self, name: str, reason: str, work: Callable[[], Result]) -> Result | None:
        """The result, or None and why. Any error is a reason: a card takes long, and the other measures can be had."""
        measure = name.partition(".")[0]
        if measure in self.leave_out:
            self.skipped[measure] = LEFT_OUT
            return None
        if reason:
            self.skipped[name] = reason
            return None
        try:
            return work()
        except Exception as error:
            self.skipped[name] = f"{type(error).__name__}: {error}"
            return None

    def _states(self) -> Float[Tensor, "N S"]:
        return check_features("state", aggregate_states(self.model, self.test, max(self.lengths, default=self.views)))

    def _top1(self) -> Top1 | None:
        accuracy = self._make(
            "top1",
            self.no_labels,
            lambda: top1(self.model, self.train, self.test, num_views=self.lengths, seed=self.seed),
        )
        why = self.no_model or "no num_views were asked for"
        if accuracy is None and not self.no_labels and not self.no_model:  # the states may be what cannot be classified
            why = self.skipped["top1"]
            accuracy = self._part("top1", "", lambda: top1(None, self.train, self.test, num_views=(), seed=self.seed))
            if accuracy is not None:
                del self.skipped["top1"]
        if accuracy is not None and not accuracy.states:
            self.skipped["top1.states"] = why
        return accuracy

    def _from_states(self, few: Features, others: Features, settings: dict[str, Any]) -> dict[int, TransformationR2]:
        lengths = sorted({1, self.views // 2}) if self.views > 1 else []
        short = "" if lengths else "two states that share no view need two views; got 1"
        fits = self._make(
            "from_states",
            self.no_model or self.no_group or short,
            lambda: {
                m: state_transformation_r2(self.model, few, others, num_views=m, levels=self.levels, **settings)
                for m in lengths
            },
        )
        return fits or {}

    def _invariance(self, few: Features, others: Features, settings: dict[str, Any]) -> dict[str, Invariance]:
        found, no_classes = self._make("invariance", "", lambda: invariance(self.model, few, others, **settings)), ""
        if found is None and not self.no_labels:  # the labels may be what cannot be told apart
            no_classes, unlabelled = self.skipped.pop("invariance"), replace(few, labels=None)
            found = self._part("invariance", "", lambda: invariance(self.model, unlabelled, others, **settings))
        found = found or {}
        no_parameters, no_classes = self.no_group or UNKNOWN, self.no_labels or no_classes
        missing = {"pose": no_parameters, "classes": no_classes, "between": "it takes two rows of each object"}
        for name, why in missing.items():
            lacking = [row for row, result in found.items() if getattr(result, name) is None]
            if lacking:
                of = "" if len(lacking) == len(found) else f"{', '.join(lacking)}: "
                self.skipped[f"invariance.{name}"] = of + why
        return found

    def _paths(
        self, few: Features, others: Features, settings: dict[str, Any]
    ) -> dict[str, dict[int, TransformationFit]]:
        short = "" if self.views > 1 else "a path needs two views; got 1"
        reason = self.no_model or self.no_group or short
        if self.path_rows is not None and not reason:
            rows = (self.train, self.path_rows), (self.test, max(2, self.path_rows // 2))
            drawn = self._part(
                "paths.rows", "", lambda: [redraw(self.model, f, count, seed=self.seed) for f, count in rows]
            )
            few, others = drawn or (few, others)
        beside = LEVELS if self.levels else LEVELS[:1]  # of the model itself the first
        some = sorted({1, 2, 3, 5, self.views - 1} & {*range(1, self.views)})
        longer = [m for m in some if m > 1]  # of one view the answer is the action that each level is told
        curves = self._make(
            "paths",
            reason,
            lambda: {
                **path_integration(self.model, few, others, variants=MODEL_VARIANTS, num_views=some, **settings),
                **path_integration(self.model, few, others, variants=beside, num_views=longer, **settings),
            },
        )
        for variant, curve in (curves or {}).items():
            if not curve:
                self.skipped[f"paths.{variant}"] = f"it begins at two views observed; of {self.views} one is"
        return curves or {}

    def _pre(self) -> Any:
        known = self.test.elements is not None and rotation_columns(self.test.group) is not None
        reason = self.no_target or self.no_group or ("" if known else "no rotations of space are known")
        return self._make("pre", reason, lambda: prediction_retrieval_error(self.model, self.test, seed=self.seed))

    def _composition(self) -> Any:
        short = "" if self.views >= 3 else f"two steps need three views; got {self.views}"
        reason = self.no_target or self.no_group or short
        return self._make("composition", reason, lambda: composition_error(self.model, self.test))

    def _sensitivity(self, few: Features, others: Features, settings: dict[str, Any]) -> Sensitivity | None:
        reason, no_labels = self.no_target or self.no_group, self.no_labels
        moved = self._make("sensitivity", reason, lambda: sensitivity(self.model, few, others, **settings))
        if moved is None and not reason and not no_labels:  # its probe may be what cannot be fitted
            no_labels, unlabelled = self.skipped.pop("sensitivity"), replace(few, labels=None)
            moved = self._part("sensitivity", "", lambda: sensitivity(self.model, unlabelled, others, **settings))
        if moved is not None and not moved.top1:
            self.skipped["sensitivity.top1"] = no_labels
        if moved is not None and self.views == 2:
            self.skipped["sensitivity.views in another order"] = "one view is observed, which has no order"
        return moved

    def _collapse(self, state: Tensor | None) -> dict[str, dict[str, float]]:
        """Effective ranks, mean cosines and mean deviations, for z and the state apart."""
        measures = {}
        of_z = self._make("collapse", "", lambda: _spread(self.test.z[:, 0]))
        views = _views_of_sources(self.test)
        single = "" if views.shape[1] > 1 else "LiDAR compares views of one source; there is one"
        found = self._part("collapse.lidar", single, lambda: lidar(views))
        if of_z is not None:
            measures["z"] = of_z if found is None else of_z | {"lidar": found}
        why = "" if state is not None else self.no_model or "there are no states"
        of_state = self._part("collapse.state", why, lambda: None if state is None else _spread(state))
        if of_state is not None:
            measures["state"] = of_state
        return measures

    def _note_individual(self, made: dict[str, Any]) -> None:
        for name in ("transformations", "from_states", "out_of_distribution"):
            fits = made[name].values() if name == "from_states" else [made[name]]
            if any(fit is not None and fit.individual is None for fit in fits):
                self.skipped[f"{name}.individual"] = UNKNOWN

    def _note_left_out(self, made: dict[str, Any]) -> None:
        fits = [fit for curve in made["paths"].values() for fit in curve.values()]
        for result in (made["transformations"], *made["from_states"].values(), made["out_of_distribution"]):
            if result is not None:
                fits += [fit for fit in (result.relative, result.individual, result.blank) if fit is not None]
        for name in dict.fromkeys(name for fit in fits for name in fit.left_out):
            self.skipped[f"R² of {name}"] = "this part never varies, in training or in the test: left out of every R²"


def _spread(x: Float[Tensor, "N D"]) -> dict[str, float]:
    return {
        "rankme": rankme(x),
        "mean_cosine": mean_pairwise_cosine(x),
        "deviation": feature_deviation(x).mean().item(),
        "dim": float(x.shape[1]),
    }


def _views_of_sources(features: Features) -> Float[Tensor, "U W D"]:
    """The views of each source, of as many sequences of each where sources are named."""
    if features.sources is None:
        return features.z
    earlier, counts = occurrence(features.sources)
    rows = (earlier < counts.min()).nonzero().flatten()
    rows = rows[features.sources[rows].argsort(stable=True)]
    return features.z[rows].unflatten(0, (-1, int(counts.min()))).flatten(1, 2)
