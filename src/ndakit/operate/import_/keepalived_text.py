"""keepalived.conf as people write it: braces anywhere, several words on a line, comments with `#` and `!`.

`lint/config_text` reads only the layout that ndakit writes, and refuses the others. This reader makes the same blocks
of any layout that keepalived itself takes, and tells the lines that it cannot read (keepalived.conf(5)).
"""

from __future__ import annotations

from collections.abc import Iterator

from ndakit.lint.config_text import Block, Line, TextError
from ndakit.operate.import_.ledger import SourceFile

DEPTH_MAX = 12
_CHECKS = {"TCP_CHECK", "HTTP_GET", "SSL_GET", "SMTP_CHECK", "DNS_CHECK", "MISC_CHECK", "UDP_CHECK", "PING_CHECK"}
_CHECKS |= {"BFD_CHECK", "FILE_CHECK"}


def read(file: SourceFile) -> Block:
    """The blocks of a file; the root has no words. A brace too many, an open quote, a block that is never closed are
    told as unsaid, and the rest is read."""
    root = Block((), 0)
    stack = [root]
    held: list[tuple[int, str]] = []  # the words of a line, until it is known whether they are a block's head
    for number, raw in enumerate(file.lines, 1):
        words: list[str] = []
        try:
            tokens = list(_tokens(raw, number))
        except TextError as cause:
            file.unsaid(number, f"keepalived does not read it: {cause.message}")
            continue
        for token in tokens:
            if token == "{":
                if words:
                    _flush(stack[-1], held)
                head, at = (tuple(words), number) if words else _head(held)
                words = []
                held.clear()
                head, before = _values_before(head)
                if before:
                    stack[-1].lines.append(Line(at or number, before))
                if not head or len(stack) > DEPTH_MAX:
                    file.unsaid(number, "keepalived does not read it: a block without a name")
                    head = head or ("?",)
                block = Block(head, at or number)
                if len(stack) <= DEPTH_MAX:
                    stack[-1].blocks.append(block)
                    stack.append(block)
            elif token == "}":
                _flush(stack[-1], held)
                if words:
                    stack[-1].lines.append(Line(number, tuple(words)))
                    words = []
                if len(stack) == 1:
                    file.unsaid(number, "keepalived does not read it: a brace is closed that was not opened")
                else:
                    stack.pop()
            else:
                words.append(token.removeprefix('"'))
        if tokens and words:
            _flush(stack[-1], held)
            held.extend((number, word) for word in words)
    _flush(stack[-1], held)
    for block in stack[1:]:
        file.unsaid(block.number, f"keepalived does not read it: block '{block.words[0]}' is not closed")
    return root


def _head(held: list[tuple[int, str]]) -> tuple[tuple[str, ...], int]:
    """The words of the line before, if a brace follows on its own line."""
    return tuple(word for _, word in held), held[0][0] if held else 0


def _values_before(head: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`weight 0 TCP_CHECK {` is a value, and a block after it: the block's head, and the words before it."""
    at = next((i for i, word in enumerate(head) if i > 0 and word in _CHECKS), 0)
    return head[at:], head[:at]


def _flush(block: Block, held: list[tuple[int, str]]) -> None:
    """The words that were held are a line of their own."""
    if held:
        block.lines.append(Line(held[0][0], tuple(word for _, word in held)))
        held.clear()


def _tokens(raw: str, number: int) -> Iterator[str]:
    """Words and braces; a word that stood in quotes begins with one, so that a brace in quotes is a word."""
    word, quoted, started = "", False, False
    for char in raw:
        if quoted:
            quoted = char != '"'
            word += "" if char == '"' else char
        elif char == '"':
            quoted, word, started = True, word if started else '"', True
        elif char in "#!" and (not started or char == "#"):
            break
        elif char in " \t{}":
            if started:
                yield word
            word, started = "", False
            if char in "{}":
                yield char
        else:
            word, started = word + char, True
    if quoted:
        raise TextError(number, "a quote is not closed")
    if started:
        yield word


def walk(block: Block, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Line]]:
    """Every line of every block with the heads it lies in; a head is a line, too."""
    for line in block.lines:
        yield path, line
    for inner in block.blocks:
        head = " ".join(inner.words)
        yield path, Line(inner.number, (*inner.words, "{"))
        yield from walk(inner, (*path, head))
