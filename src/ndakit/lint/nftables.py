"""Lint of nft files of one's own (fw4): no chain of theirs may drop what the firewall's own rules let in.

fw4 loads /etc/nftables.d, /usr/share/nftables.d and the includes of type nftables by itself (OpenWrt's fw4,
ruleset.uc). A packet has to pass every base chain of a hook: an accept ends one chain only, a drop ends the packet's
way (nft(8), verdict statements).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ndakit.lint.subject import LintFinding, Subject

_FOLDERS = ("/etc/nftables.d/", "/usr/share/nftables.d/")
_OWN_CHAINS = "/usr/share/nftables.d/chain-pre/"
_HOOKS = ("ingress", "prerouting", "input", "forward", "output", "postrouting", "egress")
_CHAIN = re.compile(r'\bchain\s+"?([\w.-]+)"?\s*\{')
_BASE = re.compile(r"type\s+\w+\s+hook\s+(\w+)\b")
_POLICY = re.compile(r"policy\s+(\w+)")
_VERDICT = re.compile(
    r"(?:(?:counter(?: packets \d+ bytes \d+)?|comment \"[^\"]*\""
    r"|log(?: (?:prefix \"[^\"]*\"|(?:level|flags|group|snaplen|queue-threshold) [\w,-]+))*) )*(accept|drop|reject)\b"
)
"""A rule that holds for every packet: nothing before its verdict but what counts, logs or explains."""


_LEAP = re.compile(r"(?:counter (?:packets \d+ bytes \d+ )?)?(jump|goto) ([\w.-]+)$")


@dataclass(frozen=True)
class _Statement:
    """A line of a chain, or a part of one, with its blanks made one."""

    line: int
    text: str


def rules(subject: Subject) -> Iterator[LintFinding]:
    """Every chain with a hook, and every file that goes into one of fw4's chains, lets something pass."""
    if not subject.profile.release.fw4:
        return  # fw3 has no nft
    for path, chain in _files(subject).items():
        text = _without_comments(subject.tree[path].text)
        if chain is not None:
            yield from _drops(subject, path, f"what goes before chain {chain}", _statements(text, 1), "accept", 1)
        chains = {name: _statements(body, line) for name, line, body in _chains(text)}
        for name, line, body in _chains(text):
            statements = _followed(_statements(body, line), chains)
            hook = next((h[1] for s in statements if (h := _BASE.match(s.text))), None)
            if hook in _HOOKS:
                policy = next((p[1] for s in statements if (p := _POLICY.match(s.text))), "accept")
                yield from _drops(subject, path, f"chain {name} (hook {hook})", statements, policy, line)


def _drops(
    subject: Subject, path: str, what: str, statements: list[_Statement], policy: str, line: int
) -> Iterator[LintFinding]:
    verdict, how = policy, f"policy {policy}"
    for statement in statements:
        if (always := _VERDICT.match(statement.text)) is not None:
            verdict, how, line = always[1], f"{always[1]} without a condition", statement.line
            break
        if _POLICY.match(statement.text):
            line = statement.line
    if verdict in ("drop", "reject"):
        why = (
            f"{what} ends with {how}, and no rule of the firewall brings a packet back: SSH, the other nodes' adverts, "
            "services and health checks are all dropped"
        )
        fix = f"in {subject.tree[path].source}, write policy accept, and give every {verdict} a condition"
        yield subject.finding("no-way-in", path, line, why, fix)


def _followed(
    statements: list[_Statement], chains: dict[str, list[_Statement]], above: frozenset[str] = frozenset()
) -> list[_Statement]:
    """A chain's statements, with those of the file's own chains in place of a jump or goto without a condition."""
    followed: list[_Statement] = []
    for statement in statements:
        leap = _LEAP.match(statement.text)
        if leap is None or leap[2] not in chains or leap[2] in above:
            followed.append(statement)
            continue
        followed += _followed(chains[leap[2]], chains, above | {leap[2]})
        if leap[1] == "goto":
            break
    return followed


def _files(subject: Subject) -> dict[str, str | None]:
    """The nft files that fw4 loads; with the chain into which one goes, if it goes before that chain's own rules."""
    chain_of: dict[str, str | None] = {}
    for path in subject.tree:
        if path.startswith(_FOLDERS) and path.endswith(".nft"):
            chain_of[path] = path.removeprefix(_OWN_CHAINS).split("/")[0] if path.startswith(_OWN_CHAINS) else None
    for section in subject.sections("firewall", "include"):
        path = section.get("path") or ""
        if section.get("type") == "nftables" and section.get("enabled") != "0" and path in subject.tree:
            before = section.get("position") in ("chain-pre", "chain-prepend")
            chain_of[path] = section.get("chain") if before else None
    return {p: c if c is None or c.startswith(_HOOKS) else None for p, c in chain_of.items()}


def _chains(text: str) -> Iterator[tuple[str, int, str]]:
    """Name, first line and body of every chain."""
    for chain in _CHAIN.finditer(text):
        depth, quoted = 1, False
        for at in range(chain.end(), len(text)):
            quoted ^= text[at] == '"'
            depth += 0 if quoted else (text[at] == "{") - (text[at] == "}")
            if not depth:
                break
        else:
            at = len(text)  # nft refuses it
        yield chain[1], text.count("\n", 0, chain.end()) + 1, text[chain.end() : at]


def _statements(body: str, line: int) -> list[_Statement]:
    """What a chain says: cut at ends of lines and semicolons that are in no set and no string."""
    statements, words, depth, quoted, begun = [], "", 0, False, line
    for character in f"{body}\n":
        quoted ^= character == '"'
        depth += 0 if quoted else (character == "{") - (character == "}")
        if character in "\n;" and not quoted and depth <= 0:
            if words.strip():
                statements.append(_Statement(begun, " ".join(words.split())))
            words, begun = "", line + (character == "\n")
        else:
            words += character
        line += character == "\n"
    return statements


def _without_comments(text: str) -> str:
    """The text without what follows a # outside of a string; the lines keep their numbers."""
    return re.sub(r'("[^"\n]*")|#[^\n]*', lambda m: m[1] or "", text)
