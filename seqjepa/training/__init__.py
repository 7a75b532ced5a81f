"""What a training loop of your own calls: checkpoints, seeds of a step, groups of weights, batch norm and shards."""

from seqjepa.training.batch_norm import RunningStatistics, SyncBatchNorm, sync_batch_norm
from seqjepa.training.checkpoints import Checkpoints
from seqjepa.training.sharding import register_forward_methods
from seqjepa.training.steps import seed_step
from seqjepa.training.weights import weight_groups

__all__ = [
    "Checkpoints", "RunningStatistics", "SyncBatchNorm", "register_forward_methods", "seed_step", "sync_batch_norm",
    "weight_groups",
]  # fmt: skip
