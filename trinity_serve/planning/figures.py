"""What one device gives: memory, bandwidth, arithmetic and links. Every figure can be replaced.

The table holds makers' nominal figures (dense arithmetic, links per direction); what a program
reaches of them is for `Assumptions`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType

from cluster.errors import ConfigError
from cluster.json_fields import load_json_object


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One GPU, or one host that computes experts on its CPUs.

    Links carry so many bytes per second in each direction. Latencies are from handing rows over
    until the other side can compute with them, one way, host's part included.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    node_bytes_per_s: float
    """To another device of the same node."""
    network_bytes_per_s: float
    """To a device of another node."""
    node_latency_s: float = 90e-6
    network_latency_s: float = 90e-6

    def replaced(self, changes: Mapping[str, float], source: str) -> DeviceFigures:
        """Return these figures with some of them changed; `source` names them in errors.

        Raises:
            ConfigError: there is no such figure, or its value is not a number above 0.
        """
        known = figure_names()
        for key, value in changes.items():
            if key not in known:
                raise ConfigError(source, key, "there is no such figure", ", ".join(known))
            if not 0 < value < math.inf:
                raise ConfigError(source, key, f"is {value:g}", "a finite number above 0")
        # replace() takes any keyword; the names were checked above.
        return replace(self, **dict(changes))  # type: ignore[arg-type]


def figure_names() -> tuple[str, ...]:
    """Return the names of all figures of a device, without its own name."""
    return tuple(each.name for each in fields(DeviceFigures) if each.name != "name")


def read_figures(path: Path, base: DeviceFigures) -> DeviceFigures:
    """Return `base` with the figures of a JSON object (of `trinity plan --measure`, or by hand).

    Raises ConfigError for a file that cannot be read, or a figure that is unknown or no number.
    """
    found = dict(load_json_object(path))
    name = found.pop("name", base.name)
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(str(path), key, f"is {json.dumps(value)}", "a number")
    numbers = {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
    return replace(base.replaced(numbers, str(path)), name=str(name))


_GB = 1e9
_TB = 1e12
_TFLOPS = 1e12

_ALL = (
    DeviceFigures(
        "H100-80", 80 * _GB, 3.35 * _TB, 989 * _TFLOPS, 1979 * _TFLOPS, 450 * _GB, 50 * _GB
    ),
    DeviceFigures(
        "H200-141", 141 * _GB, 4.8 * _TB, 989 * _TFLOPS, 1979 * _TFLOPS, 450 * _GB, 50 * _GB
    ),
    DeviceFigures("B200", 180 * _GB, 8 * _TB, 2250 * _TFLOPS, 4500 * _TFLOPS, 900 * _GB, 50 * _GB),
    # No FP8 units: FP8 weights are computed in bf16.
    DeviceFigures(
        "A100-80", 80 * _GB, 2.039 * _TB, 312 * _TFLOPS, 312 * _TFLOPS, 300 * _GB, 25 * _GB
    ),
    DeviceFigures(
        "MI300X", 192 * _GB, 5.3 * _TB, 1307 * _TFLOPS, 2614 * _TFLOPS, 448 * _GB, 50 * _GB
    ),
    # Two sockets of 12 channels; rows reach it over PCIe inside a node and over gRPC between
    # nodes, whose round trip of 0.45 ms was measured (facts of the gRPC transport).
    DeviceFigures(
        "CPU",
        1500 * _GB,
        0.9 * _TB,
        10 * _TFLOPS,
        10 * _TFLOPS,
        50 * _GB,
        12.5 * _GB,
        node_latency_s=225e-6,
        network_latency_s=225e-6,
    ),
)

MACHINES: Mapping[str, DeviceFigures] = MappingProxyType({each.name: each for each in _ALL})
"""By name; "CPU" is one host of two sockets."""

_SHORT = MappingProxyType({"H100": "H100-80", "H200": "H200-141", "A100": "A100-80"})


def find_machine(name: str, source: str) -> DeviceFigures:
    """Return the figures of a device by its name (`H200` stands for `H200-141`).

    Raises ConfigError when the table has no such device.
    """
    found = MACHINES.get(_SHORT.get(name.upper(), name.upper()))
    if found is None:
        raise ConfigError(source, "device", f"{name!r} is not in the table", ", ".join(MACHINES))
    return found
