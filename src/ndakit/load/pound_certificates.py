"""Which of a service's certificates Pound shows for a name, and in which order every name gets one that fits.

Pound takes the first certificate of its file with a name that fnmatch(3) finds in the client's: `*` stands for dots
too, letters' case counts, and the subject's common name is asked as well as subjectAltName. If none fits, it is the
first one. Seen with Pound 4.16 and 4.19 (config.c, SNI_server_name; docs/pound.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter

from ndakit.core.mistakes import listing
from ndakit.load.certificates import CertificateBundle, CertificateFault, covers, names_as_written


@dataclass(frozen=True)
class _Hidden:
    """A name whose clients are shown a certificate that is not for it, though there is one for it."""

    host: str
    shown: str
    """The secret whose certificate Pound shows."""
    right: str
    """A secret whose certificate is for the name."""


def order_fault(
    service: str, bundles: Mapping[str, CertificateBundle], hosts: Iterable[str]
) -> tuple[str, CertificateFault] | None:
    """What is wrong with the order of a service's certificates, and the secret that it is about; None if nothing is.

    `bundles` by the names of their secrets, in the profile's order; `hosts` are names or wildcards that clients ask
    for, beside those of the certificates themselves.
    """
    names = (*hosts, *(name.lower() for bundle in bundles.values() for name in names_as_written(bundle.leaf)))
    asked = tuple(dict.fromkeys(name.replace("*", "any", 1) for name in names))
    hidden = _first_hidden(tuple(bundles), bundles, asked)
    if hidden is None:
        return None
    if _fits(bundles[hidden.right], hidden.host):
        why = (
            f"Pound takes the first one that fits, its * takes dots too, and {hidden.shown} (for "
            f"{listing(names_as_written(bundles[hidden.shown].leaf), 6)}) stands before it"
        )
    else:
        why = f"its names have capital letters, Pound compares letters exactly, and so {hidden.shown} is shown"
    better = _order(bundles, asked)
    change = "" if better is None else (
        f"write certificates: [{', '.join(f'{{secret: {secret}}}' for secret in better)}] (the first one is for names "
        "that none has, too); or "
    )  # fmt: skip
    return hidden.right, CertificateFault(
        "certificate-hidden", f"clients of service {service} that ask for {hidden.host} do not get {hidden.right}, "
        f"which is for that name: {why}",
        f"{change}write terminator: haproxy, for which a * is one whole label",
    )  # fmt: skip


def _first_hidden(
    order: Sequence[str], bundles: Mapping[str, CertificateBundle], asked: Iterable[str]
) -> _Hidden | None:
    for host in asked:
        shown = shown_for(host, order, bundles)
        right = next((secret for secret in order if covers(bundles[secret], host)), None)
        if right is not None and not covers(bundles[shown], host):
            return _Hidden(host, shown, right)
    return None


def shown_for(host: str, order: Sequence[str], bundles: Mapping[str, CertificateBundle]) -> str:
    """The secret of the certificate that Pound shows to clients that ask for a name."""
    return next((secret for secret in order if _fits(bundles[secret], host)), order[0])


def _fits(bundle: CertificateBundle, host: str) -> bool:
    """True if Pound takes a certificate for one that is for this name."""
    return any(fnmatchcase(host, pattern) for pattern in names_as_written(bundle.leaf))


def _order(bundles: Mapping[str, CertificateBundle], asked: Iterable[str]) -> tuple[str, ...] | None:
    """The certificates so that every name gets one that is for it; None if there is no such order."""
    before: dict[str, list[str]] = {secret: [] for secret in bundles}  # lists: every run finds the same order
    for host in asked:
        right = [secret for secret in bundles if covers(bundles[secret], host)]
        for secret in bundles:
            if secret not in right and _fits(bundles[secret], host):
                before[secret] += right
    try:
        order = tuple(TopologicalSorter(before).static_order())
    except CycleError:
        return None
    return order if _first_hidden(order, bundles, asked) is None else None
