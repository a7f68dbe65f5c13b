"""ModelOpt's dialect: hf_quant_config.json, or `quantization_config` of config.json.

Needs no torch.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

from cluster.json_fields import JsonFields
from experts.quantised.description import (
    Group,
    Patterns,
    Quantisation,
    nested,
    refuse_others,
    texts,
)
from experts.quantised.scheme import Form, Scheme

METHOD = "modelopt"
METHODS = (METHOD, "modelopt_fp4")

_GROUP_SIZE = 16
_KEYS = frozenset(
    {
        "config_groups",
        "exclude_modules",
        "group_size",
        "ignore",
        "kv_cache_quant_algo",
        "kv_cache_scheme",
        "producer",
        "quant_algo",
        "quant_method",
        "quantization",
    }
)


def parse_modelopt(fields: JsonFields) -> Quantisation:
    """Parse either file's block. Raises ConfigError: another algorithm than NVFP4."""
    if isinstance(fields.mapping.get("quantization"), Mapping):
        # hf_quant_config.json, and older config.json files, have all of it one level down.
        fields = nested(fields, "quantization")
    refuse_others(fields, _KEYS)
    fields.refuse_unless("quant_algo", "NVFP4", required=True)
    fields.refuse_unless("group_size", _GROUP_SIZE)
    for key in ("kv_cache_quant_algo", "kv_cache_scheme"):
        if fields.has(key):
            problem = f"is {fields.mapping[key]!r}"
            raise fields.error(key, problem, "null: KV is kept in the compute dtype")
    if fields.has("config_groups"):
        _check_groups(nested(fields, "config_groups"))
    excluded = texts(fields, "ignore") + texts(fields, "exclude_modules")
    group = Group(Scheme(Form.NVFP4_MODELOPT, _GROUP_SIZE), Patterns(), all_linears=True)
    return Quantisation(METHOD, (group,), _excluded(excluded))


def _check_groups(groups: JsonFields) -> None:
    """The groups repeat what the algorithm's name says; another size would be another form."""
    for name in groups.mapping:
        weights = nested(nested(groups, name), "weights")
        weights.refuse_unless("group_size", _GROUP_SIZE)
        weights.refuse_unless("num_bits", 4)
        weights.refuse_unless("type", "float")


def _excluded(wildcards: tuple[str, ...]) -> Patterns:
    """A wildcard means the modules it matches, and a plain name all that is below it too."""
    names = frozenset(text for text in wildcards if not _is_wild(text))
    below = [re.compile(re.escape(name) + r"\.") for name in sorted(names)]
    wild = [re.compile(fnmatch.translate(text)) for text in wildcards if _is_wild(text)]
    return Patterns(names, (*below, *wild), tuple(sorted(wildcards)))


def _is_wild(text: str) -> bool:
    return any(mark in text for mark in "*?[")
