"""What every lint rule gets and gives: the subject (a rendered tree and the profile behind it) and the finding."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ndakit.core.errors import BuildError, Location
from ndakit.core.uci import Section, UciError, read
from ndakit.model import Profile
from ndakit.render.node import NodeView
from ndakit.render.render import Tree


def mend(source: str) -> str:
    """Who has to mend a rendered file: a person who changed its template, or we."""
    if not source.endswith(".j2"):
        return f"mend {source}"
    return f"if you changed {source}, mend it there; if not, this is a fault of ndakit: report it with this profile"


class LintFinding(BuildError):
    """One thing in a rendered file that would not do what the profile says."""

    def __init__(self, rule: str, node: str, path: str, line: int, what: str, fix: str) -> None:
        place = Location(f"{node}:{path}", line, 1) if line else Location(f"{node}:{path}")
        super().__init__(f"{what} [{rule}]", where=place, fix=fix)
        self.rule = rule
        self.path = path
        self.line = line

    @property
    def code(self) -> str:
        """The rule's name, for scripts."""
        return f"lint-{self.rule}"


@dataclass(frozen=True)
class Subject:
    """What the rules look at: the tree, and what it should say."""

    tree: Tree
    profile: Profile
    node: str

    @functools.cached_property
    def view(self) -> NodeView:
        """The node as the model sees it."""
        return NodeView(self.profile, self.node)

    @functools.cached_property
    def configs(self) -> dict[str, list[Section]]:
        """The UCI files that can be read, by name (`network`)."""
        sections_of: dict[str, list[Section]] = {}
        for path, file in self.tree.items():
            if path.startswith("/etc/config/"):
                try:
                    sections_of[path.removeprefix("/etc/config/")] = read(file.text)
                except UciError:
                    continue
        return sections_of

    def sections(self, config: str, kind: str) -> list[Section]:
        """The sections of one type in a UCI file; none if the file is not there."""
        return [s for s in self.configs.get(config, []) if s.type == kind]

    def finding(self, rule: str, path: str, line: int, what: str, fix: str = "") -> LintFinding:
        """A finding; its fix line points at the template unless the rule knows better."""
        source = self.tree[path].source if path in self.tree else "the template"
        return LintFinding(rule, self.node, path, line, what, fix or mend(source))
