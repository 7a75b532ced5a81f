"""The methods of the paper's table beside seq-JEPA: one calling convention, one scorecard."""

from seqjepa.baselines._base import Baseline, BaselineOutput
from seqjepa.baselines.byol import BYOL
from seqjepa.baselines.conditional_byol import ConditionalBYOL
from seqjepa.baselines.context_ssl import ContextSSL
from seqjepa.baselines.contrast import NTXent
from seqjepa.baselines.conv_ijepa import ConvIJEPA
from seqjepa.baselines.equimod import EquiMod
from seqjepa.baselines.heads import HyperPredictor, Projector
from seqjepa.baselines.in_context import InContext
from seqjepa.baselines.pair_transformer import PairTransformer
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.baselines.sen import SEN
from seqjepa.baselines.sie import SIE, SIEWeights
from seqjepa.baselines.simclr import SimCLR
from seqjepa.baselines.vicreg import VICReg
from seqjepa.baselines.vicreg_traj import VICRegTraj
from seqjepa.mean_aggregate import MeanAggregate

__all__ = [
    "BYOL",
    "SEN",
    "SIE",
    "Baseline",
    "BaselineOutput",
    "ConditionalBYOL",
    "ContextSSL",
    "ConvIJEPA",
    "EquiMod",
    "HyperPredictor",
    "InContext",
    "MeanAggregate",
    "NTXent",
    "PairTransformer",
    "Projector",
    "SIEWeights",
    "SimCLR",
    "VICReg",
    "VICRegTraj",
    "ViewPairs",
]
