"""Which file holds which tensor, checked against what the configuration says must exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.errors import CheckpointError, ConfigError
from cluster.json_fields import load_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_weight_map(index: Path) -> dict[str, str]:
    """Return tensor name -> file name from an index file. Raises CheckpointError."""
    try:
        weight_map = load_json_object(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(index), "", "a safetensors index", error.problem) from error
    if not isinstance(weight_map, dict):
        raise CheckpointError(str(index), "", "an object weight_map", repr(weight_map))
    for name, file in weight_map.items():
        # A plain name: the index must not lead out of the checkpoint's folder.
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise CheckpointError(str(index), name, "a .safetensors file beside it", repr(file))
    return weight_map


def check_names(
    found: Iterable[str], expected: Iterable[str], optional: Iterable[str], source: str
) -> None:
    """Refuse a missing tensor, and one that the model does not have (its arithmetic is unknown).

    `optional` may be there or not.
    Raises CheckpointError about the first such tensor; for a missing one it names the closest
    unknown name, which is what a misnamed tensor looks like.
    """
    expected_names = set(expected)
    known = expected_names.union(optional)
    unknown = {name for name in found if name not in known and "rotary_emb.inv_freq" not in name}
    missing = expected_names - set(found)
    if missing:
        name = min(missing)
        close = difflib.get_close_matches(name, sorted(unknown)[:1000], n=1)
        hint = f", but an unknown {close[0]}" if close else ""
        total = f"no such tensor{hint} ({len(missing)} of {len(expected_names)} missing)"
        raise CheckpointError(source, name, "a tensor of this name", total)
    if unknown:
        count = f"{len(unknown)} tensors that an AFMoE model of this configuration does not have"
        raise CheckpointError(source, min(unknown), "no such tensor", count)


def no_weights_error(folder: Path) -> CheckpointError:
    """Return the error for a folder with neither an index nor a single safetensors file."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    found = "neither"
    if pickles:
        found = f"only {pickles[0]} (pickled weights are never opened: convert it to safetensors)"
    return CheckpointError(str(folder), "", f"{SINGLE_FILE} or {INDEX_FILE}", found)


def group_by_file(names: Iterable[str], weight_map: Mapping[str, str]) -> dict[str, list[str]]:
    """Return file name -> the given tensors in it, both in the order met."""
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(weight_map[name], []).append(name)
    return files
