"""What a training loop of your own calls: checkpoints, seeds of a step, groups of weights, batch norm over ranks."""

from seqjepa.training.batch_norm import RunningStatistics, SyncBatchNorm, sync_batch_norm
from seqjepa.training.checkpoints import Checkpoints
from seqjepa.training.steps import seed_step
from seqjepa.training.weights import weight_groups

__all__ = ["Checkpoints", "RunningStatistics", "SyncBatchNorm", "seed_step", "sync_batch_norm", "weight_groups"]
