"""Cross-checks: what `image.packages` asks for against what the profile needs.

Whether an ImageBuilder has a package is found out when one is there. Whether a release has it by name is the business
of `ndakit.feed`, because a package in the workspace can make up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.model import package_needs
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error


def removed(profile: Profile) -> Iterator[Finding]:
    """Packages that are to be removed although the profile does not work without them."""
    needed, kept = package_needs.needed(profile), package_needs.kept(profile)
    for name, wish in profile.image.packages.items():
        if wish == "remove" and (why := needed.get(name) or kept.get(name)) is not None:
            yield error(
                "packages-contradict", f"package {name} is to be removed, and this profile needs it: {why}",
                ("image", "packages", name), f"take {name} out of image.packages",
            )  # fmt: skip


def rivals(profile: Profile) -> Iterator[Finding]:
    """Packages to be added that cannot be beside another one that is needed."""
    needed = package_needs.needed(profile)
    for name, wish in profile.image.packages.items():
        other = package_needs.RIVALS.get(name)
        if wish == "add" and other is not None and other in needed:
            yield error(
                "packages-conflict", f"package {name} cannot be beside {other}, which this profile needs: "
                f"{needed[other]}",
                ("image", "packages", name), f"take {name} out of image.packages",
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (removed, rivals)
