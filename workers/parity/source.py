"""An engine's source files without the engine: loaded alone, or single definitions cut out of them.

Whole packages of engines import kernels that need a GPU; the few definitions that rotate need torch at most.
"""

import ast
import importlib.util
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType


def stub(name: str, **attributes: object) -> ModuleType:
    """Put a module of a few attributes, which is a package too, where an engine's file will import it from.

    Only for a process of its own: the real package cannot be imported afterwards.

    Args:
        name: Its dotted name.
        **attributes: What it holds.

    Returns:
        The module.
    """
    module = ModuleType(name)
    module.__path__ = []
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def load_file(path: Path, name: str) -> ModuleType:
    """Return one source file as a module, without its package's `__init__`.

    Args:
        path: File to load.
        name: Its dotted name; what its relative imports ask for must be importable or stubbed.

    Returns:
        The module.

    Raises:
        OSError: There is no such file.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"an engine's source must be a Python file, got {path}. Check the package.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def cut(
    path: Path, names: Collection[str], known: Mapping[str, object], *, inside: str | None = None
) -> dict[str, object]:
    """Return single definitions of a source file, run without the rest of it.

    Args:
        path: File that holds them.
        names: Functions, classes and assigned names to cut out.
        known: What they use of the rest: modules and functions by name.
        inside: Class whose methods they are; default: they stand at the file's top.

    Returns:
        The definitions by name, and what was known.

    Raises:
        OSError: There is no such file.
        LookupError: The file does not have one of them; it is another version.
    """
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if inside is not None:
        body = [inner for node in body if isinstance(node, ast.ClassDef) and node.name == inside for inner in node.body]
    kept = [node for node in body if _name(node) in names]
    missing = set(names) - {_name(node) for node in kept}
    if missing:
        raise LookupError(f"{path.name} has no {', '.join(sorted(missing))}: another version than was read")
    return run([*ast.parse("from __future__ import annotations").body, *map(_bare, kept)], path, known)


def run(statements: list[ast.stmt], path: Path, known: Mapping[str, object]) -> dict[str, object]:
    """Run statements of a source file alone.

    Args:
        statements: As `ast` has them.
        path: File that they are of, for tracebacks.
        known: Names that they use.

    Returns:
        All names afterwards.
    """
    names = dict(known)
    exec(compile(ast.Module(statements, []), str(path), "exec"), names)  # noqa: S102 - the engine's own code
    return names


def block(path: Path, function: str, condition: str) -> list[ast.stmt]:
    """Return the first `if` of a function that asks for one name's truth.

    Args:
        path: File that holds the function at its top.
        function: Its name.
        condition: The name that the `if` asks for.

    Returns:
        The `if`, as one statement in a list.

    Raises:
        LookupError: There is none; it is another version.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            for inner in node.body:
                if isinstance(inner, ast.If) and isinstance(inner.test, ast.Name) and inner.test.id == condition:
                    return [inner]
    raise LookupError(f"{path.name} has no {function} that asks for {condition}: another version than was read")


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
    )
    return target.id if isinstance(target, ast.Name) else ""


def _bare(node: ast.stmt) -> ast.stmt:
    """Return a function without decorators, which would need more of the package."""
    if isinstance(node, ast.FunctionDef):
        node.decorator_list = []
    return node
