"""Synthetic checkpoints in the Hub's exact layout: AFMoE shapes, seeded random weights."""

from trinity_serve.synthetic.presets import PRESETS, slice_of
from trinity_serve.synthetic.recipe import Recipe, Scope
from trinity_serve.synthetic.writer import write_checkpoint, write_checkpoint_outline

__all__ = [
    "PRESETS",
    "Recipe",
    "Scope",
    "slice_of",
    "write_checkpoint",
    "write_checkpoint_outline",
]
