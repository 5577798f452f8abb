"""`script`: a program of the user's own says so."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from ndakit.core.release import OLDEST
from ndakit.model.base import AttachedFile, Text, as_list, mistake
from ndakit.model.checks.base import ANYWAY, BETTER, Lie, PortCheck, Speaks
from ndakit.model.engines import IPVS, Branch

SCRIPT_MAX = 64 * 1024


class ScriptCheck(PortCheck):
    """Your own script decides. For services of topology nat, dr and tun, and for a pool that no service uses and
    `vrrp.demote_on` names."""

    carried: ClassVar[Mapping[str, Branch]] = {IPVS.name: OLDEST}
    needs_port: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = True
    connects: ClassVar[bool] = False
    never_wrong: ClassVar[str] = "nobody knows what its script takes for a wrong answer"

    type: Literal["script"] = "script"
    """`script`"""
    script: AttachedFile | None = None
    """A shell script, relative to the file that writes it. It gets address, port (0 if there is none) and `arguments`;
    the server is well if it ends with 0."""
    arguments: Annotated[tuple[Text, ...], BeforeValidator(as_list)] | None = None
    """Further arguments."""
    run_as: Literal["nobody", "root"] | None = None
    """The user it runs as, default nobody."""

    @model_validator(mode="after")
    def _script_runs(self) -> Self:
        if self.script is None:
            raise mistake("no-script", "a script check without a script", fix="add script: check.sh")
        content = self.script.content
        fix = "name a shell script that begins with #!/bin/sh"
        if not re.match(rb"#! ?/bin/(a?sh|busybox)\b", content):
            raise mistake("no-script", "{path} is no shell script: the image has no other interpreter for sure",
                          path=self.script.path, fix=fix)  # fmt: skip
        if len(content) > SCRIPT_MAX or b"\0" in content or b"\r" in content or not content.endswith(b"\n"):
            raise mistake("no-script", "{path} has more than 64 KiB, carriage returns, or no newline at its end",
                          path=self.script.path, fix="save it as plain text with Unix line ends")  # fmt: skip
        return self

    @property
    def user(self) -> str:
        """The user it runs as."""
        return self.run_as or "nobody"

    @property
    def whole_timeout_s(self) -> int:
        """`misc_timeout`, which is in whole seconds."""
        return math.ceil(self.timeout_s)

    @property
    def keepalived_attempt_s(self) -> float:
        """The longest time, in seconds, that one check takes."""
        return self.whole_timeout_s

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """Nobody knows what the script asks: both ports are open, and HTTP is what it asks most likely."""
        open_anyway = () if datagrams and self.port is None else (Speaks("http", BETTER),)
        return (*open_anyway, *((Speaks("udp", ANYWAY),) if self.port is not None or datagrams else ()))

    def lie(self) -> Lie | None:
        """Nobody knows what the script takes for wrong."""
        return None
