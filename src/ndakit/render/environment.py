"""The template engine as ndakit uses it: no value without a filter, none that is missing, and `{% only_if … %}`.

Which templates there are, and what is made of them, is the business of `render`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, nodes
from jinja2.exceptions import TemplateNotFound
from jinja2.ext import Extension
from jinja2.parser import Parser

from ndakit.render.filters import FILTERS, plain
from ndakit.render.template_cache import CompiledTemplates

FILTERS_GONE = ("safe", "escape", "e", "forceescape", "tojson", "urlize", "xmlattr", "striptags", "default", "d")
"""Filters of the template engine that would pass text through unseen, or hide that a value is missing."""


class NotHere(Exception):
    """Not an error: the file does not apply to the node."""


class OnlyIf(Extension):
    """`{% only_if expression %}`: the file exists only on nodes for which the expression is true."""

    tags = {"only_if"}  # noqa: RUF012  # the type is jinja2's

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the tag into a call of `_check`."""
        line = next(parser.stream).lineno
        call = self.call_method("_check", [parser.parse_expression()])
        return nodes.ExprStmt(call).set_lineno(line)

    def _check(self, applies: object) -> str:
        if not applies:
            raise NotHere
        return ""


class _Loader(BaseLoader):
    """Templates are given by their file's path; the stamp makes a changed file a new template."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        """The text of a template file."""
        name, _, _stamp = template.rpartition("@")
        try:
            return Path(name).read_text(encoding="utf-8"), name, lambda: True
        except (OSError, UnicodeDecodeError) as cause:
            raise TemplateNotFound(name, f"cannot be read: {cause}") from cause


@functools.cache
def environment() -> Environment:
    """The engine with its filters, made once."""
    engine = Environment(
        loader=_Loader(),
        bytecode_cache=CompiledTemplates(),
        undefined=StrictUndefined,
        finalize=plain,
        autoescape=False,  # no HTML here: `plain` sees to it that every value went through a filter
        extensions=[OnlyIf],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        cache_size=-1,
    )
    for name in FILTERS_GONE:
        del engine.filters[name]
    engine.filters.update(FILTERS)
    return engine


def stamped(file: Path, stamp: tuple[int, int]) -> str:
    """The name of a template for the engine: a changed file is another template."""
    return f"{file}@{stamp[0]}.{stamp[1]}"
