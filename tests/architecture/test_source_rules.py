"""Rules of the source that no linter of ours knows; sizes are printed, not enforced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import ROOT, nodes, parse, source_files

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
EXECUTING = {"eval", "exec", "compile", "torch.load", "numpy.load", "np.load", "yaml.load"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def public_definitions(
    body: list[ast.stmt], path: Path, prefix: str = ""
) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_"):
            continue
        yield f"{path}:{node.lineno} {prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body, path, f"{node.name}.")


def repeats_a_documented_contract(node: ast.stmt) -> bool:
    """Overrides say so, and overloads and protocol stubs of one line are told by their class."""
    decorators = [dotted(item) for item in getattr(node, "decorator_list", [])]
    return any(name.split(".")[-1] in ("override", "overload", "setter") for name in decorators)


def is_stub(node: ast.stmt) -> bool:
    body = getattr(node, "body", [])
    return len(body) == 1 and isinstance(body[0], ast.Expr) and dotted_constant(body[0]) is Ellipsis


def dotted_constant(node: ast.Expr) -> object:
    return node.value.value if isinstance(node.value, ast.Constant) else None


def test_every_public_class_and_function_is_documented() -> None:
    bare = [
        where
        for path in source_files()
        for where, node in public_definitions(parse(path).body, path.relative_to(ROOT))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and not ast.get_docstring(node)
        and not repeats_a_documented_contract(node)
        and not is_stub(node)
    ]
    assert not bare, "\n".join(bare)


def test_every_module_with_code_says_what_it_is_for() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in source_files()
        if parse(path).body and not ast.get_docstring(parse(path))
    ]
    assert not bare


def test_nothing_is_unpickled_or_executed_from_data() -> None:
    found = []
    for path, node in nodes():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if UNPICKLING & {name.partition(".")[0] for name in names}:
            found.append(f"{path}: import of {names}")
        if isinstance(node, ast.Call) and dotted(node.func) in EXECUTING:
            found.append(f"{path}:{node.lineno}: {dotted(node.func)}")
    assert not found


def test_the_environment_is_not_read() -> None:
    """Setting a variable for a program that is started is no reading."""
    written = {
        id(node.value)
        for _, node in nodes()
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    }
    reads = [
        f"{path}:{node.lineno}"
        for path, node in nodes()
        if isinstance(node, (ast.Attribute, ast.Name))
        and dotted(node) in ("os.environ", "os.getenv", "environ", "getenv")
        and id(node) not in written
    ]
    assert not reads


def test_no_function_writes_module_level_state() -> None:
    writers = [f"{path}:{node.lineno}" for path, node in nodes() if isinstance(node, ast.Global)]
    assert not writers


def test_nothing_is_left_for_later_in_a_comment() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    left = [
        str(path.relative_to(ROOT)) for path in source_files() if marks.search(path.read_text())
    ]
    assert not left


def test_sizes_are_reported_for_review() -> None:
    files = sorted((len(path.read_text().splitlines()), path) for path in source_files())[-5:]
    functions = sorted(
        ((node.end_lineno or 0) - node.lineno + 1, f"{path}:{node.name}")
        for path, node in nodes()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )[-5:]
    for lines, longest in reversed(files):
        print(f"{lines:5} lines  {longest.relative_to(ROOT)}")
    for lines, name in reversed(functions):
        print(f"{lines:5} lines  {name}")
    assert files
    assert functions
