"""The steps of `make image`, one by one: which an ImageBuilder has, and the command lines that run them.

Owns the division of `make image` into the part that installs packages, whose result depends on the packages only, and
the part that makes one customer's image of that. Both together run what `make image` runs, in its order: the steps are
read from the ImageBuilder's own Makefile, and one that has a step unknown here is left to do it in one go. Pure text.
Interface: openwrt/openwrt `target/imagebuilder/files/Makefile`, rules `image`, `_call_image`; the same steps, by the
same names, from 18.06 (without profiles.json until 21.02) to 25.12.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.imagebuilder.request import ImageRequest

_INSTALL = "package_install"
_FINISH = ("prepare_rootfs", "build_image")
_LAST = "checksum"
_KNOWN = {"package_reload", _INSTALL, *_FINISH, "json_overview_image_info", _LAST}
# What `_call_image` does itself before its first step. TARGET_DIR is told, because its name depends on the target.
_FRESH = "ndakit_fresh:;@rm -rf $(TARGET_DIR) $(TARGET_DIR_ORIG) && mkdir -p $(TARGET_DIR) $(TMP_DIR) $(DL_DIR)"
_FRESH += " && echo 'ndakit: root $(TARGET_DIR)'"
_READY = "ndakit_ready:;@mkdir -p $(BIN_DIR) $(TMP_DIR) $(DL_DIR)"


@dataclass(frozen=True)
class MakeSteps:
    """The goals of make behind `make image`: what must have been done once, what installs packages, what follows."""

    once: tuple[str, ...]
    install: tuple[str, ...]
    finish: tuple[str, ...]


def read(makefile: str) -> MakeSteps | None:
    """The steps of an ImageBuilder, by its Makefile; None if it has others than are known."""
    # A blank line ends it: what a conditional (ifeq …) cuts into parts is not understood.
    rule = re.search(r"^_call_image:([^\n]*)\n((?:\t[^\n]*\n)+)\n", makefile, re.MULTILINE)
    if rule is None:
        return None
    steps: list[str] = []
    for line in rule[2].splitlines():
        step = re.fullmatch(r"\t\$\(MAKE\) (?:-s )?([a-z_]+)", line)
        if step and step[1] in _KNOWN:
            steps.append(step[1])
        elif step or not re.match(r"\t(echo\b|rm -rf \$\(TARGET_DIR\)|mkdir -p \$\(TARGET_DIR\))", line):
            return None
    if _INSTALL not in steps:
        return None
    cut = steps.index(_INSTALL) + 1
    before, after = steps[:cut], steps[cut:]
    if tuple(after[: len(_FINISH)]) != _FINISH or after[-1] != _LAST:
        return None
    keys = ["_check_keys"] if re.search(r"^_check_keys:", makefile, re.MULTILINE) else []
    return MakeSteps(tuple(w for w in rule[1].split() if w != "FORCE"), (*keys, *before), tuple(after))


def profile_id(profiles_mk: str, device: str) -> str:
    """A device's name inside of make: with a prefix, but for the few that very old releases have without it."""
    names = re.search(r"^PROFILE_NAMES *[:+]?= *(.*)$", profiles_mk, re.MULTILINE)
    known: Sequence[str] = names[1].split() if names else ()
    return device if device in known and f"DEVICE_{device}" not in known else f"DEVICE_{device}"


def once_argv(steps: MakeSteps) -> list[str]:
    """The command line for what must have been done once in a folder: the check of the machine's programs."""
    return ["make", *steps.once]


def install_argv(steps: MakeSteps, request: ImageRequest, profile: str) -> list[str]:
    """The command line that installs the packages into an empty root."""
    return [
        "make", "--eval", _FRESH, "ndakit_fresh", *steps.install, f"USER_PROFILE={profile}",
        f"USER_PACKAGES={request.packages}",
    ]  # fmt: skip


def root_of(output: str) -> Path | None:
    """The root that `install_argv` filled, by what it said."""
    line = re.search(r"^ndakit: root (/.+)$", output, re.MULTILINE)
    return Path(line[1]) if line else None


def finish_argv(steps: MakeSteps, request: ImageRequest, profile: str, bin_dir: Path) -> list[str]:
    """The command line that makes the image of an installed root. The size is in .config, for every release."""
    argv = ["make", "-s", "--eval", _READY, "ndakit_ready", *steps.finish, f"USER_PROFILE={profile}"]
    argv += [f"USER_PACKAGES={request.packages}", f"USER_FILES={request.files}", f"BIN_DIR={bin_dir}"]
    argv.append(f"EXTRA_IMAGE_NAME={request.extra_name}")
    if request.disabled_services:
        argv.append(f"DISABLED_SERVICES={' '.join(sorted(request.disabled_services))}")
    return argv
