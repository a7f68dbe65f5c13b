"""Reads from a checkpoint's configuration files what is quantised. Needs no torch.

Two dialects: compressed-tensors (`quantization_config` in config.json) and ModelOpt (there too, or
in hf_quant_config.json). What neither reads here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.json_fields import JsonFields, load_json_object
from experts.quantised import compressed_tensors, modelopt
from experts.quantised.compressed_tensors import parse_compressed_tensors
from experts.quantised.description import Quantisation, nested
from experts.quantised.modelopt import parse_modelopt

MODELOPT_FILE = "hf_quant_config.json"


def read_quantisation(folder: Path) -> Quantisation | None:
    """Return what the files in a checkpoint's folder say; None when it is not quantised.

    config.json counts when both files are there. Raises ConfigError: unreadable, a form that is
    not read here, or a combination of settings that has no meaning.
    """
    path = folder / "config.json"
    content = load_json_object(path)
    if content.get("quantization_config") is not None:
        return parse_quantisation(content, str(path))
    beside = folder / MODELOPT_FILE
    if not beside.exists():
        return None
    return parse_modelopt(JsonFields(load_json_object(beside), str(beside)))


def parse_quantisation(content: Mapping[str, object], source: str) -> Quantisation:
    """Parse `quantization_config` of config.json's `content`; `source` names it in errors.

    Raises ConfigError as `read_quantisation`.
    """
    block = nested(JsonFields(content, source), "quantization_config")
    method = block.required("quant_method")
    if method == compressed_tensors.METHOD:
        return parse_compressed_tensors(block)
    if method in modelopt.METHODS:
        return parse_modelopt(block)
    known = " or ".join((compressed_tensors.METHOD, *modelopt.METHODS))
    raise block.error("quant_method", f"is {method!r}", known)
