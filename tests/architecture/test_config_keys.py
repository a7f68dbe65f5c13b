"""Every configuration key does something: some part of the source reads it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from tests.architecture.source import parse, source_files
from trinity_serve.config import ServeConfig


def leaf_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaf_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def attributes_read() -> set[str]:
    """Attribute names that are read anywhere but in the validators of the configuration itself."""
    names = set()
    for path in source_files():
        for node in ast.walk(without_validators(parse(path))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


def without_validators(tree: ast.Module) -> ast.Module:
    return ast.Module([kept for node in tree.body for kept in members(node)], [])


def members(node: ast.stmt) -> list[ast.stmt]:
    if not isinstance(node, ast.ClassDef):
        return [node]
    return [item for item in node.body if not getattr(item, "name", "").startswith("_check")]


KEYS = sorted(leaf_keys(ServeConfig))


@pytest.fixture(scope="module")
def read() -> set[str]:
    return attributes_read()


@pytest.mark.parametrize("key", KEYS)
def test_some_part_reads_the_key(key: str, read: set[str]) -> None:
    assert key.rpartition(".")[2] in read
