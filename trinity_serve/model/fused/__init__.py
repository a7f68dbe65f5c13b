"""Segments of the C backend as one call each, and the planner in C."""
