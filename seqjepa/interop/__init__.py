"""Doors to what others wrote: the checkpoints of the paper's released code."""

from seqjepa.interop.released import load_released

__all__ = ["load_released"]
