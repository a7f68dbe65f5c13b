"""Quantised checkpoints: what the published forms are, how they are told, what they mean."""
