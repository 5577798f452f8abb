"""What every model class and scalar has in common.

A profile's scalars arrive as the text that stands in the file (YAML resolves nothing); the types here turn it into
values, strictly: `true` is a boolean, `yes` is a mistake with a hint. Absent is None, never an empty text.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ndakit.core.addresses import Address as Address
from ndakit.core.addresses import Subnet as Subnet
from ndakit.core.names import UNSEEN

FamilyName = Literal["ipv4", "ipv6"]


class Model(BaseModel):
    """Frozen, closed, documented by the text under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    planned: ClassVar[Mapping[str, str]] = {}
    """Keys of the profile language that this version does not carry yet, and what they are for."""

    planned_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Values of the profile language, by key, that this version does not carry yet, and what they are for."""

    short_form: ClassVar[str | None] = None
    """The key that a plain scalar (or list) in place of the mapping stands for."""

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, value: Any) -> Any:
        if cls.short_form is not None and isinstance(value, str | list):
            return {cls.short_form: value}
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        body = handler.resolve_ref_schema(handler(schema))
        if cls.short_form is None:
            return body
        short = body["properties"][cls.short_form]
        return {"anyOf": [{k: v for k, v in short.items() if k != "default"}, body]}


def mistake(code: str, message: str, **facts: Any) -> PydanticCustomError:
    """A refusal with a message for people; `fix` among the facts becomes the fix line."""
    return PydanticCustomError(code, message, facts)


def _bool(value: Any) -> Any:
    if isinstance(value, str):
        if value in ("true", "false"):
            return value == "true"
        hint = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}.get(
            value.lower()
        )
        fix = f"write {hint}" if hint else "write true or false"
        raise mistake("boolean", "'{got}' is not true or false", got=value[:40], fix=fix)
    return value


def _int(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"-?(0|[1-9][0-9]{0,9})", value):
            raise mistake(
                "whole-number", "'{got}' is not a whole number", got=value[:40], fix="write digits only, such as 80"
            )
        return int(value)
    return value


def _float(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value):
            raise mistake(
                "number",
                "'{got}' is not a number",
                got=value[:40],
                fix="write a number such as 2 or 0.5, without a unit",
            )
        return float(value)
    return value


Bool = Annotated[bool, BeforeValidator(_bool)]
Int = Annotated[int, BeforeValidator(_int)]
Number = Annotated[float, BeforeValidator(_float)]


@dataclass(frozen=True)
class Between:
    """Limits of a number, both included, with the unit for the message."""

    low: float
    high: float
    unit: str = ""

    def check(self, value: float) -> float:
        """The value, or a refusal that names the limits."""
        if not self.low <= value <= self.high:
            low, high = f"{self.low:.10g}", f"{self.high:.10g}"
            raise mistake(
                "range", "{got} is not between {low} and {high}{unit}",
                got=f"{value:.10g}", low=low, high=high, unit=f" {self.unit}" if self.unit else "",
                fix=f"choose a value from {low} to {high}",
            )  # fmt: skip
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "minimum": self.low, "maximum": self.high}


Port = Annotated[Int, Between(1, 65535)]
"""A TCP or UDP port."""


def _text(value: str) -> str:
    if not value.strip():
        raise mistake("empty", "an empty text", fix="write something, or leave the key out")
    if bad := UNSEEN.search(value):
        raise mistake(
            "control-character", "the text contains a line break or control character ({char})",
            char=f"U+{ord(bad[0]):04X}", fix="write it on one line, without control characters",
        )  # fmt: skip
    if len(value) > 200:
        raise mistake("too-long", "the text has {got} characters, more than 200", got=len(value), fix="shorten it")
    return value


Text = Annotated[str, AfterValidator(_text), WithJsonSchema({"type": ["string", "number", "boolean"]})]
"""One line of free text for people, at most 200 characters; never interpreted by a program."""


def _url_path(value: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9._~!$&()*+,;=:@%/?-]{0,255}", value):
        raise mistake(
            "url-path", "'{got}' is not a URL path", got=value[:60],
            fix="start with / and use unreserved URL characters, at most 256; write others as %XX",
        )  # fmt: skip
    return value


UrlPath = Annotated[str, AfterValidator(_url_path)]
"""The path (and query) part of a URL."""


_NO_NAMES = "names are not looked up: write the address, such as {}"


def _is_name(value: str) -> bool:
    return not value[-1:].isdigit() and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", value.lower()) is not None


_AROUND = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://)?(?:\[([^\]]+)\]|([^\[\]/:]+|[0-9a-f:.]+(?=/|$)))(:\d+)?(/.*)?", re.IGNORECASE
)
"""A URL, or what stands around an address otherwise: scheme, address (the first two groups), port, path."""


def _address_meant(value: str) -> str:
    """What to write instead of a text that is not an address."""
    around = _AROUND.fullmatch(value)
    alone, port, path = (around[1] or around[2], around[3], around[4]) if around else (value, None, None)
    try:
        ip_address(alone)
    except ValueError:
        if _is_name(alone):
            return _NO_NAMES.format("192.0.2.1")
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", alone):
            return "write each number from 0 to 255, without leading zeros"
        return "write 192.0.2.1 or 2001:db8::1"
    if re.fullmatch(r"/[0-9.]+", path or "") and value == f"{alone}{path}":
        return "leave the prefix length out: the network's subnet has it"
    beside = " (the port has a key of its own)" if port else ""
    return f"write the address alone: {alone}{beside}"


def _address(value: Any) -> Any:
    if isinstance(value, str):
        try:
            address = ip_address(value)
        except ValueError:
            raise mistake(
                "address", "'{got}' is not an IP address", got=value[:60], fix=_address_meant(value)
            ) from None
        if isinstance(address, IPv6Address) and address.scope_id:
            raise mistake(
                "address", "'{got}' has a zone", got=value[:60],
                fix="a gateway or VIP: write it without %interface, its network says which one; anything else: write "
                "another address of it, because a link-local one cannot be reached in this version",
            )  # fmt: skip
        return address
    return value


def _no_subnet(value: str, right: str) -> PydanticCustomError:
    fix = _NO_NAMES.format(right) if _is_name(value) else f"write {right}"
    return mistake("subnet", "'{got}' is not a subnet", got=value[:60], fix=fix)


def _whole(value: str, *, hosts: bool) -> Subnet:
    """A subnet; `hosts`: a single address is as likely to be meant, so that no fix makes more of it than was written.

    Raises a refusal whose fix can be written as it stands.
    """
    alone, _, length = value.partition("/")
    try:
        address = ip_address(alone)
    except ValueError:
        raise _no_subnet(value, "192.0.2.0/24 or 2001:db8::/64") from None
    if isinstance(address, IPv6Address):
        # Without a zone, which no subnet has, and as the IPv4 address that it may stand for.
        address = address.ipv4_mapped or IPv6Address(int(address))
    one = f"{address}/{address.max_prefixlen}"
    around = ip_network(f"{address}/{24 if address.version == 4 else 64}", strict=False)
    if "/" not in value:
        fix = f"write {around}, or its real prefix length"
        if hosts and around.network_address == address:
            fix = f"write {around} for the subnet (or its real prefix length), or {one} for this address alone"
        elif hosts:
            fix = f"write {one} for this address alone, or the subnet that is meant, such as {around}"
        raise mistake("subnet", "'{got}' has no prefix length", got=value[:60], fix=fix)
    try:
        return ip_network(value)
    except ValueError:
        try:
            right = ip_network(f"{address}/{length}", strict=False)
        except ValueError:
            raise _no_subnet(value, str(around)) from None
        fix = f"write {right}" + (f" for the whole subnet, or {one} for this address alone" if hosts else "")
        raise mistake("subnet", "'{got}' has host bits set", got=value[:60], fix=fix) from None


def _subnet(value: Any) -> Any:
    return _whole(value, hosts=False) if isinstance(value, str) else value


def _host_or_subnet(value: Any) -> Any:
    return _whole(value, hosts=True) if isinstance(value, str) else value


_AS_TEXT = PlainSerializer(str, return_type=str)
IpAddress = Annotated[Address, BeforeValidator(_address), _AS_TEXT, WithJsonSchema({"type": "string"})]
IpSubnet = Annotated[Subnet, BeforeValidator(_subnet), _AS_TEXT, WithJsonSchema({"type": "string"})]
"""The subnet of a network."""
IpRange = Annotated[Subnet, BeforeValidator(_host_or_subnet), _AS_TEXT, WithJsonSchema({"type": "string"})]
"""Where somebody is: a subnet, which can be one address (/32, /128)."""


def as_list(value: Any) -> Any:
    """One value stands for the list of it."""
    return value if isinstance(value, list | tuple) else [value]


def _one_per_family(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise mistake("empty", "an empty list", fix="state at least one, or leave the key out")
    families = [v.version for v in values]
    if len(families) != len(set(families)):
        raise mistake(
            "one-per-family", "more than one of a family: {got}", got=", ".join(map(str, values)),
            fix="state at most one IPv4 and one IPv6 value",
        )  # fmt: skip
    return values


def _single_or_list(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


Addresses = Annotated[
    tuple[IpAddress, ...],
    BeforeValidator(as_list),
    AfterValidator(_one_per_family),
    _single_or_list({"type": "string"}),
]
"""An address, or a list with at most one per family."""

Subnets = Annotated[
    tuple[IpSubnet, ...], BeforeValidator(as_list), AfterValidator(_one_per_family), _single_or_list({"type": "string"})
]
"""A subnet, or a list with at most one per family."""


BROKEN_KEY = "the key's data is cut off or broken inside: nobody could log in with it"
RSA_BITS_MIN = 2048
"""NIST SP 800-131A: shorter RSA keys are no longer acceptable; dropbear and ssh-keygen would take 1024 bits."""


def _ssh_key(value: str) -> str:
    words = value.split()
    kinds = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa",
             "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")  # fmt: skip
    fix = "paste the one line of the .pub file: type, base64 data, comment"
    if "PRIVATE KEY" in value:
        raise mistake(
            "private-key",
            "this is a private key",
            fix="paste the .pub file, and make a new key pair: this one is exposed",
        )
    if len(words) < 2 or words[0] not in kinds:
        raise mistake("ssh-key", "not an SSH public key of a known type", fix=fix)
    try:
        blob = base64.b64decode(words[1], validate=True)
        (length,) = struct.unpack(">I", blob[:4])
        inner = blob[4 : 4 + length].decode("ascii")
    except (binascii.Error, struct.error, ValueError):
        raise mistake("ssh-key", "the key's data is damaged (no valid base64)", fix=fix) from None
    if inner != words[0]:
        raise mistake("ssh-key", "the key's data does not belong to its type", fix=fix)
    _inside_of_key(words[0], words[1], fix)
    return _text_of_key(" ".join(words))


def _inside_of_key(kind: str, encoded: str, fix: str) -> None:
    """Refuse a key whose numbers are not what its type needs (RFC 4253, 6.6; RFC 5656, 3.1; RFC 8709, 4): no SSH server
    takes it, so that its owner could not log in."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(f"{kind} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm):
        raise mistake("ssh-key", BROKEN_KEY, fix=fix) from None
    if not isinstance(key, RSAPublicKey):
        return
    numbers = key.public_numbers()
    if numbers.n % 2 == 0 or numbers.e % 2 == 0:
        raise mistake("ssh-key", BROKEN_KEY, fix=fix)
    if key.key_size < RSA_BITS_MIN:
        raise mistake(
            "ssh-key-weak", "an RSA key of {got} bits can be broken, and whoever does is root", got=key.key_size,
            fix="make a new key: ssh-keygen -t ed25519, or ssh-keygen -t rsa -b 3072",
        )  # fmt: skip


def _text_of_key(value: str) -> str:
    if len(value) > 4096 or UNSEEN.search(value):
        raise mistake(
            "ssh-key", "the key has control characters or is too long", fix="paste the one line of the .pub file"
        )
    return value


SshKey = Annotated[str, AfterValidator(_ssh_key)]
"""An SSH public key as one line of authorized_keys, without options."""


class SecretRef(Model):
    """A reference to a secret that is kept outside the profile."""

    secret: Annotated[
        str, AfterValidator(lambda v: v if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", v) else _bad_secret())
    ]
    """The secret's name: letters, digits, `.`, `_`, `-`."""

    @model_validator(mode="before")
    @classmethod
    def _no_plain_secret(cls, value: Any) -> Any:
        if isinstance(value, str | list):  # the message repeats nothing of it: it may be the secret itself
            raise mistake(
                "secret-plain", "a secret is stated in the profile, or its reference is not written as one",
                fix="write {secret: NAME}, and put the value into the file secrets/PROFILE/NAME (mode 0600)",
            )  # fmt: skip
        return value


def _bad_secret() -> str:
    raise mistake("secret-name", "not a secret's name", fix="use letters, digits, '.', '_' and '-', at most 64")


class Attachment(Model):
    """A file that a profile names: its path as written and its content."""

    path: str
    """The path as it stands in the profile, relative to the file that writes it."""
    content: bytes
    """What was in the file when the profile was read."""


def attach(value: Any, info: ValidationInfo) -> Any:
    """The attachment that a path stands for, read by the loader's `attach`."""
    if isinstance(value, str):
        reader = (info.context or {}).get("attach")
        if reader is None:
            raise mistake("attachment", "files cannot be read here", fix="load the profile from its file")
        return Attachment(path=value, content=reader(value))
    return value


AttachedFile = Annotated[
    Attachment,
    BeforeValidator(attach),
    PlainSerializer(lambda a: a.path, return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""A file named by its path, relative to the file that writes it; the loader passes `attach(text)` as context."""
