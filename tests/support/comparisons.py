"""Where a module compares something with the rows of a table, such as the engines', instead of asking the row."""

from __future__ import annotations

import ast
from collections.abc import Collection


def compared_with(source: str, module: str, names: Collection[str], more: Collection[str] = ()) -> list[int]:
    """The lines of a module's source that compare something with a row of the table `module`: by its name, by a name
    that was imported, or by `TABLE.ROW`. `more`: further words that stand for a row."""
    tree = ast.parse(source)
    words = {*names, *more}
    table = module.rpartition(".")[2]
    imports = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == module)
    rows = {alias.asname or alias.name for n in imports for alias in n.names}

    def named(node: ast.expr) -> bool:
        parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return any(
            (isinstance(part, ast.Constant) and part.value in words)
            or (isinstance(part, ast.Name) and part.id in rows)
            or ast.unparse(part) in {f"{table}.{name.upper()}" for name in names}
            for part in parts
        )

    compared = (n for n in ast.walk(tree) if isinstance(n, ast.Compare))
    matched = (n for n in ast.walk(tree) if isinstance(n, ast.MatchValue) and named(n.value))
    lines = [n.lineno for n in compared if any(named(side) for side in (n.left, *n.comparators))]
    return sorted({*lines, *(n.lineno for n in matched)})
