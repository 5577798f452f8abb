"""Text of a profile that goes over the wire, and checks that send it: bytes that no text holds are escapes."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated

from pydantic import BeforeValidator

from ndakit.model.base import Text, mistake
from ndakit.model.checks.base import PortCheck

_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.?)")


def raw_bytes(text: str) -> bytes:
    r"""Text with the escapes `\r`, `\n`, `\t`, `\\` and `\x41` as bytes. Raises ValueError on another escape."""
    content, end = b"", 0
    for match in _ESCAPE.finditer(text):
        content += text[end : match.start()].encode()
        end, escape = match.end(), match[1]
        if escape.startswith("x") and len(escape) == 3:
            content += bytes.fromhex(escape[1:])
        elif escape in _ESCAPES:
            content += _ESCAPES[escape]
        else:
            raise ValueError(match[0])
    return content + text[end:].encode()


def _escaped(value: str) -> str:
    # YAML's double quotes make real line ends of the escapes, single quotes and plain text leave them.
    for char, escape in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        value = value.replace(char, escape)
    try:
        raw_bytes(value)
    except ValueError as cause:
        raise mistake(
            "escape", "'{got}' is no escape", got=str(cause)[:10], fix=r"write \r, \n, \t, \\ or two hex digits as \x41"
        ) from None
    return value


Talk = Annotated[Text, BeforeValidator(lambda v: _escaped(v) if isinstance(v, str) else v)]
r"""Text that goes over the wire, with the escapes `\r`, `\n`, `\t`, `\\` and `\x41`."""


def other_than(reply: bytes) -> bytes:
    """An answer that does not contain this one."""
    return b"no\r\n" if reply not in b"no\r\n" else b"~~\r\n"


class ExchangeCheck(PortCheck):
    """A check that sends something of the user's choice, and looks at the reply."""

    send: Talk | None = None
    r"""What is sent, with the escapes `\r`, `\n`, `\t`, `\\` and `\x41`."""

    @property
    @abstractmethod
    def reply_text(self) -> str:
        """The reply that is wanted, as the profile writes it; empty for none."""

    @property
    def sent(self) -> bytes:
        """What is sent."""
        return raw_bytes(self.send or "")

    @property
    def reply(self) -> bytes:
        """The reply that is wanted."""
        return raw_bytes(self.reply_text)

    @property
    def sent_hex(self) -> str:
        """What is sent, in hexadecimal."""
        return self.sent.hex()

    @property
    def reply_hex(self) -> str:
        """The reply that is wanted, in hexadecimal."""
        return self.reply.hex()
