"""Synthetic checkpoints in the Hub's exact layout: AFMoE shapes, seeded random weights."""

from trinity_serve.synthetic.presets import PRESETS, slice_of
from trinity_serve.synthetic.writer import write_checkpoint

__all__ = ["PRESETS", "slice_of", "write_checkpoint"]
