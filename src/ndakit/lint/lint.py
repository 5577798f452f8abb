"""Lint: what OpenWrt and the daemons would swallow silently in a rendered tree, found before an image is built.

Works on the rendered text alone, read by readers that share no code with templates and filters; expectations come from
the profile. Every rule stands for a failure that was measured (docs/facts.md) and has a
test that shows it failing. This module owns the rules about files as such, and the order; each engine and each other
program has its own in the module of its name. What the real daemons say is the business of `real_daemons`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ndakit.core.errors import NdakitError
from ndakit.lint import (
    admin,
    firewall,
    haproxy,
    ipvs,
    keepalived,
    nftables,
    pair,
    pound,
    stunnel,
    system,
    transparent,
    uci,
)
from ndakit.lint.subject import LintFinding, Subject
from ndakit.model import Profile
from ndakit.render.render import READ_BY_SHELLS, Tree, mode_of, within

__all__ = ["LintFinding", "Subject", "lint"]

_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_PAGES = ("/etc/ndakit/sorry-", "/etc/ndakit/error-")
"""Whole answers of HTTP."""
_WITHOUT_COMMENT = (*_PAGES, "/etc/banner")
"""Files whose syntax has no comments: an HTTP response, and the banner, which says where it comes from as text."""
_GONE = re.compile(r"(^|/)(\.git|\.svn|\.#[^/]*)(/|$)")


def lint(tree: Tree, profile: Profile, node: str) -> list[NdakitError]:
    """Everything that is wrong with a rendered tree, in the order of the files; empty if all is well."""
    subject = Subject(tree, profile, node)
    findings: list[LintFinding] = []
    for rules in (
        files,
        uci.rules,
        firewall.rules,
        nftables.rules,
        admin.rules,
        haproxy.rules,
        keepalived.rules,
        pound.rules,
        stunnel.rules,
        system.rules,
        pair.rules,
        ipvs.rules,
        transparent.rules,
    ):
        findings.extend(rules(subject))
    return [*sorted(findings, key=lambda f: (f.path, f.line, f.rule))]


def files(subject: Subject) -> Iterator[LintFinding]:
    """Rules about every file: place, mode, bytes, where it comes from."""
    for path, file in subject.tree.items():
        if not path.startswith(("/etc/", "/usr/", "/lib/", "/www/", "/root/")) or _GONE.search(path):
            what = "the ImageBuilder removes this file, or OpenWrt mounts something over it"
            yield subject.finding("place", path, 0, what, "put it below /etc or /usr")
        if file.mode != mode_of(path):
            what = f"its mode is {file.mode:04o}, and {mode_of(path):04o} is needed there"
            yield subject.finding("mode", path, 0, what, "let render.MODES decide the mode")
        if file.content.startswith(b"#!") and not file.mode & 0o100 and not within(path, READ_BY_SHELLS):
            yield subject.finding(
                "mode", path, 1, "a script without the x bit cannot be run", "put it where programs go"
            )
        if path.startswith(_PAGES):
            continue
        if not file.content.endswith(b"\n"):
            what = "the last line does not end with a newline (HAProxy refuses that, others lose the line)"
            yield subject.finding("newline", path, file.content.count(b"\n") + 1, what)
        if control := _CONTROL.search(file.content):
            line = file.content.count(b"\n", 0, control.start()) + 1
            yield subject.finding("control-character", path, line, f"control character 0x{control[0][0]:02x}")
        try:
            file.content.decode("utf-8")
        except UnicodeDecodeError as cause:
            line = file.content.count(b"\n", 0, cause.start) + 1
            yield subject.finding("encoding", path, line, "not UTF-8")
        if file.source.endswith(".j2") and not path.startswith(_WITHOUT_COMMENT):
            head = file.text.splitlines()[:2]
            if not any(line.startswith("#") and f"for {subject.profile.name}, node" in line for line in head):
                what = "the first line does not say for which profile and from which template it was made"
                yield subject.finding("origin", path, 1, what, "begin it with: # {{ header | comment }}")
