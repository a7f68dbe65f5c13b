"""Sizing by arithmetic: what a model needs, what machines give, and which layout uses it best.

Nothing here is measured, started or loaded: neither torch nor Ray is imported, and figures of
machines come in from outside. All of it is about decoding; prompts cost in addition.
"""

from trinity_serve.planning.comparison import Comparison, compare
from trinity_serve.planning.figures import MACHINES, DeviceFigures
from trinity_serve.planning.layouts import Cluster, LayoutKind
from trinity_serve.planning.serve_file import serve_file_text
from trinity_serve.planning.sizes import ModelSizes, WeightForm
from trinity_serve.planning.step import Assumptions
from trinity_serve.planning.table import table_lines
from trinity_serve.planning.workload import Workload

__all__ = [
    "MACHINES",
    "Assumptions",
    "Cluster",
    "Comparison",
    "DeviceFigures",
    "LayoutKind",
    "ModelSizes",
    "WeightForm",
    "Workload",
    "compare",
    "serve_file_text",
    "table_lines",
]
