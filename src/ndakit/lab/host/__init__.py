"""Lab hosts: virtual machines in which many small hosts live, each a network namespace with services and measurements.

`image` builds what such a machine boots, `hosts` talks to one that runs, `measure` holds what it measured.
"""

from ndakit.lab.host import image
from ndakit.lab.host.certificate import throw_away as certificate
from ndakit.lab.host.channel import LabHostLost, LabHostRefused
from ndakit.lab.host.connections import Call, Heard, Held
from ndakit.lab.host.hosts import Host, HostService, LabCommandFailed, LabHosts, Web
from ndakit.lab.host.image import LabHostNotMade, LabImage
from ndakit.lab.host.measure import (
    Answer,
    Clock,
    Gap,
    Load,
    Ping,
    Polled,
    ProgramResult,
    SshProbe,
    Try,
    Watched,
    WebStats,
    gaps,
)
from ndakit.lab.host.poller import Poller, Watch
from ndakit.lab.host.request import TlsWanted
from ndakit.lab.host.spec import Behaviour, HostInterface, HostSpec

__all__ = [
    "Answer",
    "Behaviour",
    "Call",
    "Clock",
    "Gap",
    "Heard",
    "Held",
    "Host",
    "HostInterface",
    "HostService",
    "HostSpec",
    "LabCommandFailed",
    "LabHostLost",
    "LabHostNotMade",
    "LabHostRefused",
    "LabHosts",
    "LabImage",
    "Load",
    "Ping",
    "Polled",
    "Poller",
    "ProgramResult",
    "SshProbe",
    "TlsWanted",
    "Try",
    "Watch",
    "Watched",
    "Web",
    "WebStats",
    "certificate",
    "gaps",
    "image",
]
