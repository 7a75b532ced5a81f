"""seqjepa: building blocks for seq-JEPA, visual world models that are equivariant and invariant at once."""

from seqjepa import interop, presets
from seqjepa.actions import ActionEmbedder, NoActions, RawActions
from seqjepa.aggregator import SequenceAggregator
from seqjepa.causal import CausalAggregator
from seqjepa.functional import CosineSchedule
from seqjepa.inverse import GaussianBottleneck, InverseModel, VectorQuantizer
from seqjepa.loss import SeqJEPALoss, SIGReg, VarianceCovariance
from seqjepa.model import SeqJEPA
from seqjepa.objectives import pair_loss, random_observed, rollout_loss
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, OnlineTarget, StopGradientTarget
from seqjepa.types import SeqJEPAOutput, ViewSequence

__version__ = "0.1.0"
__all__ = [
    "ActionEmbedder",
    "CausalAggregator",
    "ConditionedPredictor",
    "CosineSchedule",
    "EMATarget",
    "GaussianBottleneck",
    "InverseModel",
    "NoActions",
    "OnlineTarget",
    "RawActions",
    "SIGReg",
    "SeqJEPA",
    "SeqJEPALoss",
    "SeqJEPAOutput",
    "SequenceAggregator",
    "StopGradientTarget",
    "VarianceCovariance",
    "VectorQuantizer",
    "ViewSequence",
    "interop",
    "pair_loss",
    "presets",
    "random_observed",
    "rollout_loss",
]
