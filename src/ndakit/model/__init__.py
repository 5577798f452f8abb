"""The profile as frozen, typed values; no I/O here."""

from ndakit.model.base import (
    Address,
    Attachment,
    FamilyName,
    Model,
    SecretRef,
    Subnet,
)
from ndakit.model.capacity import Capacity, capacity_of
from ndakit.model.checks import Check
from ndakit.model.firewall import Firewall, Opening
from ndakit.model.host import (
    Access,
    Bond,
    Bridge,
    Image,
    Monitoring,
    Network,
    Node,
    Route,
    Statistics,
    System,
    Vip,
    Vrrp,
)
from ndakit.model.persistence import Persistence
from ndakit.model.profile import DEVICES, Endpoint, Instance, Profile
from ndakit.model.sizing import Sizing, Tuning
from ndakit.model.traffic import Pool, Server, Service, Sorry, Timeouts

__all__ = [
    "DEVICES",
    "Access",
    "Address",
    "Attachment",
    "Bond",
    "Bridge",
    "Capacity",
    "Check",
    "Endpoint",
    "FamilyName",
    "Firewall",
    "Image",
    "Instance",
    "Model",
    "Monitoring",
    "Network",
    "Node",
    "Opening",
    "Persistence",
    "Pool",
    "Profile",
    "Route",
    "SecretRef",
    "Server",
    "Service",
    "Sizing",
    "Sorry",
    "Statistics",
    "Subnet",
    "System",
    "Timeouts",
    "Tuning",
    "Vip",
    "Vrrp",
    "capacity_of",
]
