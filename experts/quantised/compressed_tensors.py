"""The compressed-tensors dialect of `quantization_config`. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import replace

from cluster.json_fields import JsonFields
from experts.quantised.description import (
    Group,
    Patterns,
    Quantisation,
    nested,
    refuse_others,
    texts,
)
from experts.quantised.scheme import BLOCK, Form, Scheme

METHOD = "compressed-tensors"

_FORMATS = {
    Form.FP8: ("float-quantized", "naive-quantized"),
    Form.FP8_DYNAMIC: ("float-quantized", "naive-quantized"),
    Form.FP8_BLOCK: ("float-quantized", "naive-quantized"),
    Form.W4A16: ("pack-quantized",),
    Form.NVFP4: ("nvfp4-pack-quantized",),
}
_MIXED = "mixed-precision"
_READ = (
    "float 8 bit by tensor, channel or 128x128 block; int 4 bit by group, symmetric; "
    "float 4 bit by tensor_group of 16"
)

# Told for people, or for how the file was made: nothing here depends on them.
_TOP_KEYS = frozenset(
    {
        "config_groups",
        "format",
        "global_compression_ratio",
        "ignore",
        "kv_cache_scheme",
        "quant_method",
        "quantization_status",
        "run_compressed",
        "version",
    }
)
_GROUP_KEYS = frozenset({"format", "input_activations", "targets", "weights"})
_WEIGHT_KEYS = frozenset(
    {
        "actorder",
        "block_structure",
        "dynamic",
        "group_size",
        "num_bits",
        "observer",
        "observer_kwargs",
        "scale_dtype",
        "strategy",
        "symmetric",
        "type",
        "zp_dtype",
    }
)


def parse_compressed_tensors(fields: JsonFields) -> Quantisation:
    """Parse the block. Raises ConfigError: a form or combination that is not read here."""
    refuse_others(fields, _TOP_KEYS)
    if fields.has("kv_cache_scheme"):
        problem = f"is {fields.mapping['kv_cache_scheme']!r}"
        raise fields.error("kv_cache_scheme", problem, "null: KV is kept in the compute dtype")
    if fields.has("quantization_status"):
        fields.refuse_unless("quantization_status", "compressed")
    groups = nested(fields, "config_groups")
    if not groups.mapping:
        raise fields.error("config_groups", "is empty", "at least one group")
    return Quantisation(
        METHOD,
        tuple(_group(fields, nested(groups, name)) for name in groups.mapping),
        patterns_of(fields, "ignore"),
    )


def patterns_of(fields: JsonFields, key: str) -> Patterns:
    """Return module names and ``re:`` expressions. Raises ConfigError."""
    names: list[str] = []
    expressions: list[re.Pattern[str]] = []
    for text in texts(fields, key):
        if not text.startswith("re:"):
            names.append(text)
            continue
        try:
            expressions.append(re.compile(text.removeprefix("re:")))
        except re.error as error:
            problem = f"has {text!r}: {error}"
            raise fields.error(key, problem, "regular expressions after re:") from error
    return Patterns(frozenset(names), tuple(expressions), tuple(sorted(texts(fields, key))))


def _group(whole: JsonFields, fields: JsonFields) -> Group:
    refuse_others(fields, _GROUP_KEYS)
    scheme = _scheme(nested(fields, "weights"))
    allowed = (*_FORMATS[scheme.form], _MIXED)
    # A group's own format is newer than the one for all, and says the same where both are there.
    for told in (whole, fields) if fields.has("format") else (whole,):
        if told.mapping.get("format") not in allowed:
            found = f"is {told.mapping.get('format')!r}"
            supported = f"{' or '.join(allowed)} for {scheme.form} weights"
            raise told.error("format", found, supported)
    if scheme.form is Form.W4A16 and fields.has("input_activations"):
        problem = f"is {fields.mapping['input_activations']!r}"
        raise fields.error("input_activations", problem, "null with 4-bit integer weights")
    targets = patterns_of(fields, "targets")
    classes = {name for name in targets.names if "." not in name}
    if classes - {"Linear"}:
        problem = f"has {min(classes - {'Linear'})!r}"
        raise fields.error("targets", problem, "Linear, module names, or re: expressions")
    if not targets.names and not targets.expressions:
        raise fields.error("targets", "is empty", "Linear, module names, or re: expressions")
    named = replace(targets, names=targets.names - classes)
    return Group(scheme, named, all_linears="Linear" in classes)


def _scheme(weights: JsonFields) -> Scheme:
    refuse_others(weights, _WEIGHT_KEYS)
    weights.refuse_unless("symmetric", True)
    weights.refuse_unless("dynamic", False)
    _refuse_reordered_columns(weights)
    kind = (weights.mapping.get("type"), weights.mapping.get("num_bits"), _strategy(weights))
    match kind:
        case ("float", 8, "tensor"):
            return Scheme(Form.FP8)
        case ("float", 8, "channel"):
            return Scheme(Form.FP8_DYNAMIC)
        case ("float", 8, "block"):
            weights.refuse_unless("block_structure", [BLOCK, BLOCK], required=True)
            return Scheme(Form.FP8_BLOCK)
        case ("int", 4, "group"):
            return Scheme(Form.W4A16, weights.integer("group_size"))
        case ("float", 4, "tensor_group"):
            weights.refuse_unless("group_size", 16, required=True)
            return Scheme(Form.NVFP4, 16)
    found = f"is {kind[0]} of {kind[1]} bits by {kind[2]}"
    raise weights.error("type", found, _READ)


def _strategy(weights: JsonFields) -> object:
    """Return the strategy; files that leave it out mean what the library infers."""
    if weights.has("strategy"):
        return weights.mapping["strategy"]
    size = weights.mapping.get("group_size")
    return {None: "tensor", -1: "channel"}.get(size if isinstance(size, int) else None, "group")


def _refuse_reordered_columns(weights: JsonFields) -> None:
    """Accept the orders that leave the stored columns where they were."""
    order = weights.mapping.get("actorder")
    if order not in (None, False, "weight", "static"):
        raise weights.error("actorder", f"is {order!r}", "null, weight or static")
