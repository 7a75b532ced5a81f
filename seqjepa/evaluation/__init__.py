"""Measures of a frozen representation: probes, retrieval, transformations, a scorecard, and a monitor for training."""

from seqjepa.evaluation._fits import TransformationFit
from seqjepa.evaluation._scores import Regression
from seqjepa.evaluation.accuracy import Top1, observation_grid, top1
from seqjepa.evaluation.collapse import (
    batch_norm_drift,
    feature_deviation,
    lidar,
    mean_pairwise_cosine,
    rankme,
    target_gap,
)
from seqjepa.evaluation.composition import CompositionError, composition_error
from seqjepa.evaluation.draws import redraw
from seqjepa.evaluation.features import Features, extract
from seqjepa.evaluation.imagination import Retention, retention
from seqjepa.evaluation.invariance import Invariance, invariance
from seqjepa.evaluation.latent_actions import (
    FewLabels,
    LatentActions,
    actions_from_latent,
    few_labels,
    latent_actions,
    latent_from_actions,
)
from seqjepa.evaluation.latent_leaks import (
    LatentCut,
    LatentIdentity,
    LatentTransfer,
    latent_cut,
    latent_identity,
    latent_transfer,
)
from seqjepa.evaluation.monitor import Health, Monitor, MonitorReport, Thresholds
from seqjepa.evaluation.neighbours import knn_r2
from seqjepa.evaluation.online import OnlineProbe
from seqjepa.evaluation.paths import path_integration
from seqjepa.evaluation.probes import Classification, knn_probe, linear_probe
from seqjepa.evaluation.regression import regression_r2
from seqjepa.evaluation.retrieval import (
    PredictionRetrievalError,
    Retrieval,
    RetrievalChance,
    action_retrieval,
    pre,
    prediction_retrieval_error,
    retrieval,
)
from seqjepa.evaluation.rotations import RotationError, rotation_error
from seqjepa.evaluation.scorecard import Scorecard, evaluate
from seqjepa.evaluation.shuffles import Sensitivity, sensitivity
from seqjepa.evaluation.states import aggregate_states
from seqjepa.evaluation.transformations import (
    TransformationR2,
    out_of_distribution,
    state_transformation_r2,
    transformation_r2,
)
from seqjepa.mean_aggregate import MeanAggregate

__all__ = [
    "Classification",
    "CompositionError",
    "Features",
    "FewLabels",
    "Health",
    "Invariance",
    "LatentActions",
    "LatentCut",
    "LatentIdentity",
    "LatentTransfer",
    "MeanAggregate",
    "Monitor",
    "MonitorReport",
    "OnlineProbe",
    "PredictionRetrievalError",
    "Regression",
    "Retention",
    "Retrieval",
    "RetrievalChance",
    "RotationError",
    "Scorecard",
    "Sensitivity",
    "Thresholds",
    "Top1",
    "TransformationFit",
    "TransformationR2",
    "action_retrieval",
    "actions_from_latent",
    "aggregate_states",
    "batch_norm_drift",
    "composition_error",
    "evaluate",
    "extract",
    "feature_deviation",
    "few_labels",
    "invariance",
    "knn_probe",
    "knn_r2",
    "latent_actions",
    "latent_cut",
    "latent_from_actions",
    "latent_identity",
    "latent_transfer",
    "lidar",
    "linear_probe",
    "mean_pairwise_cosine",
    "observation_grid",
    "out_of_distribution",
    "path_integration",
    "pre",
    "prediction_retrieval_error",
    "rankme",
    "redraw",
    "regression_r2",
    "retention",
    "retrieval",
    "rotation_error",
    "sensitivity",
    "state_transformation_r2",
    "target_gap",
    "top1",
    "transformation_r2",
]
