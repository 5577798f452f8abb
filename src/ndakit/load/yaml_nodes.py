"""A YAML file as nodes that carry their source text and place; nothing is resolved.

Every scalar stays the text that stands in the file (so `24.10.8`, `yes` and `52:54:00:12:34:56` are what they look
like), every node and key knows file, line and column. The nodes are str, dict and list, so that the model can read
them as they are. Refuses what profiles do not need and what only hides mistakes: tags, `<<`, several documents, tabs,
duplicate keys, alias bombs. Which keys there are is the model's business; merging is in `inheritance`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileMistake, dotted, show
from ndakit.load.yaml_errors import explain

SIZE_MAX = 1024 * 1024
DEPTH_MAX = 32
ALIASED_MAX = 10_000
_STR_TAG = "tag:yaml.org,2002:str"
_NULLS = ("", "~", "null", "Null", "NULL")


class Scalar(str):
    """A scalar's text."""

    __slots__ = ("at",)
    at: Location

    @classmethod
    def make(cls, text: str, at: Location) -> Scalar:
        """The text with its place."""
        made = cls(text)
        made.at = at
        return made


class MapNode(dict[str, "Node"]):
    """A mapping; `keys_at` says where each key is written."""

    __slots__ = ("at", "keys_at")

    def __init__(self, at: Location) -> None:
        super().__init__()
        self.at = at
        self.keys_at: dict[str, Location] = {}

    def put(self, key: str, value: Node, at: Location) -> None:
        """Set a key that is written at `at`."""
        self[key] = value
        self.keys_at[key] = at


class ListNode(list["Node"]):
    """A list."""

    __slots__ = ("at",)

    def __init__(self, at: Location) -> None:
        super().__init__()
        self.at = at


@dataclass(frozen=True)
class NullNode:
    """An empty value, `null` or `~`: takes away what was inherited."""

    at: Location


Node = Scalar | MapNode | ListNode | NullNode


@dataclass
class _Open:
    """A collection whose end has not been read yet, and how much is in it (aliases counted in full)."""

    node: MapNode | ListNode
    key: Scalar | None = None
    skip: bool = False
    size: int = 1
    height: int = 1
    anchors: list[str] = field(default_factory=list)


def parse(data: bytes, file: str) -> tuple[MapNode, list[ProfileMistake]]:
    """The mapping in a YAML file, and the mistakes that do not keep the rest from being read.

    Raises ProfileMistake when the file cannot be read at all (not UTF-8, not YAML, too big, too deep, not a mapping).
    """
    text = _decode(data, file)
    return _Reader(file, text).read()


def _decode(data: bytes, file: str) -> str:
    whole = Location(file)
    if len(data) > SIZE_MAX:
        raise ProfileMistake(
            "too-big",
            "the file is larger than 1 MiB; no profile needs that",
            at=whole,
            fix="look whether this is the right file",
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ProfileMistake("not-utf8", "the file is UTF-16, not UTF-8", at=whole, fix=_to_utf8("UTF-16", file))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        before = data[: cause.start]
        at = Location(file, before.count(b"\n") + 1, cause.start - (before.rfind(b"\n") + 1) + 1)
        raise ProfileMistake(
            "not-utf8",
            f"the file is not UTF-8: byte 0x{data[cause.start]:02x}",
            at=at,
            fix=_to_utf8("ISO-8859-1", file),
        ) from None
    odd = re.search("[^\n\r\t\x20-\x7e\xa0-\u2027\u202a-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]", text)
    if odd:
        at = _place(text, odd.start(), file)
        raise ProfileMistake(
            "control-character",
            f"the file contains the control character U+{ord(odd[0]):04X}",
            at=at,
            fix="delete it; nothing in a profile needs one",
        )
    tab = re.search(r"^[^#\t\n]*\t", text, re.MULTILINE)
    if tab:
        raise ProfileMistake(
            "tab",
            "a tab, where YAML wants spaces",
            at=_place(text, tab.end() - 1, file),
            fix="replace tabs by spaces (in vi: set expandtab, then retab)",
        )
    return text


def _to_utf8(encoding: str, file: str) -> str:
    return f"save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 {file} > new.yaml"


def _place(text: str, index: int, file: str) -> Location:
    return Location(file, text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1)


class _Reader:
    """Turns YAML events into nodes without recursion, so that no input can exhaust the stack."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.mistakes: list[ProfileMistake] = []
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int, int] | None] = {}
        self.aliased = 0
        self.root: Node | None = None

    def read(self) -> tuple[MapNode, list[ProfileMistake]]:
        """Read everything. Raises ProfileMistake for what cannot be read."""
        loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
        documents = 0
        try:
            for event in yaml.parse(self.text, Loader=loader):
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        raise ProfileMistake(
                            "several-documents",
                            "a second YAML document starts here",
                            at=self._at(event),
                            fix="keep one profile per file: move it into a file of its own, or delete the --- line",
                        )
                elif isinstance(event, yaml.NodeEvent):
                    self._node(event)
                elif isinstance(event, yaml.CollectionEndEvent):
                    self._end()
        except yaml.MarkedYAMLError as cause:
            raise explain(cause, self.text, self.file) from None
        except yaml.YAMLError as cause:
            raise ProfileMistake(
                "not-yaml", f"not YAML: {show(str(cause))}", at=Location(self.file), fix="correct the file"
            ) from None
        if self.root is None or isinstance(self.root, NullNode):
            raise ProfileMistake(
                "empty-file",
                "the file is empty",
                at=Location(self.file),
                fix="write a profile; profiles/bakery.yaml is the smallest one to start from",
            )
        if not isinstance(self.root, MapNode):
            raise ProfileMistake(
                "not-a-mapping",
                "the file does not hold keys with values",
                at=self.root.at,
                fix="start with 'name: …' at the beginning of a line (with a space after the colon)",
            )
        return self.root, self.mistakes

    def _at(self, event: yaml.Event) -> Location:
        mark: Any = event.start_mark
        return Location(self.file, mark.line + 1, mark.column + 1)

    def _node(self, event: yaml.NodeEvent) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._alias(event)
            return
        at = self._at(event)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", _STR_TAG):
            self.mistakes.append(
                ProfileMistake(
                    "tag",
                    f"the YAML tag '{show(str(tag).replace('tag:yaml.org,2002:', '!!'))}' is not taken",
                    at=at,
                    fix="delete the tag: the key decides what its value means; quote a text that begins with !",
                )
            )
        anchor = event.anchor
        if isinstance(event, yaml.ScalarEvent):
            empty = event.implicit[0] and event.value in _NULLS
            node: Node = NullNode(at) if empty else Scalar.make(event.value, at)
            if anchor is not None:
                self.anchors[anchor] = (node, 1, 0)
            if empty and self._wants_key():
                raise self._bad_key(at)
            self._place(node, 1, 0)
            return
        opened = MapNode(at) if isinstance(event, yaml.MappingStartEvent) else ListNode(at)
        if self._wants_key():
            raise self._bad_key(at)
        if len(self.stack) >= DEPTH_MAX:
            raise self._too_deep(at)
        frame = _Open(opened)
        if anchor is not None:
            self.anchors[anchor] = None
            frame.anchors.append(anchor)
        self.stack.append(frame)

    def _wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node, MapNode) and self.stack[-1].key is None

    def _bad_key(self, at: Location) -> ProfileMistake:
        return ProfileMistake(
            "key",
            "a key must be a plain word",
            at=at,
            fix='write name: value; for a text with special characters: "text": value',
        )

    def _too_deep(self, at: Location) -> ProfileMistake:
        return ProfileMistake(
            "too-deep",
            f"nested more than {DEPTH_MAX} levels deep",
            at=at,
            fix="take levels out; no key of a profile is that deep",
        )

    def _alias(self, event: yaml.AliasEvent) -> None:
        at = self._at(event)
        name = str(event.anchor)
        if name not in self.anchors:
            raise ProfileMistake(
                "unknown-alias",
                f"'*{show(name)}' refers to an anchor that is not there",
                at=at,
                fix=f'for the text itself, quote it: "*{show(name)}"; for an anchor, write &{show(name)} above',
            )
        known = self.anchors[name]
        if known is None:
            raise ProfileMistake(
                "alias-loop", f"'*{show(name)}' stands inside the value it repeats", at=at, fix="write the value out"
            )
        node, size, height = known
        self.aliased += size
        if self.aliased > ALIASED_MAX:
            raise ProfileMistake(
                "alias-bomb",
                f"the aliases repeat more than {ALIASED_MAX} values",
                at=at,
                fix="write the values out, or inherit them with extends",
            )
        if len(self.stack) + height > DEPTH_MAX:
            raise self._too_deep(at)
        if self._wants_key() and not isinstance(node, Scalar):
            raise self._bad_key(at)
        self._place(node, size, height)

    def _place(self, node: Node, size: int, height: int) -> None:
        """Put a finished node where it belongs."""
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        top.size += size
        top.height = max(top.height, height + 1)
        if isinstance(top.node, ListNode):
            top.node.append(node)
        elif top.key is None:
            assert isinstance(node, Scalar)
            top.key = node
            top.skip = self._refuse_key(top.node, node)
        else:
            if not top.skip:
                top.node.put(top.key, node, top.key.at)
            top.key = None

    def _refuse_key(self, into: MapNode, key: Scalar) -> bool:
        if key == "<<":
            self.mistakes.append(
                ProfileMistake(
                    "merge-key",
                    "the merge key '<<' is not taken",
                    at=key.at,
                    fix="inherit with extends: [_fragment], or write the values out",
                )
            )
            return True
        if key not in into.keys_at:
            return False
        self.mistakes.append(
            ProfileMistake(
                "duplicate-key",
                f"the key '{show(key)}' is written twice",
                at=with_key(key.at, dotted((*self._above(), key))),
                other=into.keys_at[key],
                fix="keep one of the two (YAML would silently take the last one)",
            )
        )
        return True

    def _above(self) -> KeyPath:
        """The keys and positions of the collections that are open."""
        return tuple((f.key or "") if isinstance(f.node, MapNode) else len(f.node) for f in self.stack[:-1])

    def _end(self) -> None:
        done = self.stack.pop()
        for anchor in done.anchors:
            self.anchors[anchor] = (done.node, done.size, done.height)
        self._place(done.node, done.size, done.height)


def with_key(at: Location, key: str) -> Location:
    """The place with the dotted key."""
    return dataclasses.replace(at, key=key)
