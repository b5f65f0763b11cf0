"""How a controller is named: the address syntax, and nothing about opening one.

0000:01:00.0[/nsid]           a PCI function, through VFIO
vfio-user:/run/x/cntrl[/nsid] a UNIX socket that speaks vfio-user
file:disk.img, or a path      an image file behind the embedded controller
qtest:disk.img[?nsid=2&...]   QEMU without a guest, for tests (transports/qtest.py has the rest)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import AddressError

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-9a-f])(?:/(.*))?", re.I)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.I | re.S)
_NSID_OPTION = re.compile(r"[^?]*\?(?:.*&)?nsid=([^&]*)(?:&.*)?", re.S)
MAX_NSID = 0xFFFFFFFE


@dataclass(frozen=True)
class Address:
    """`kind` is one of pci, vfio-user, qtest, file; `endpoint` the BDF, socket path or image
    path (for qtest with the options behind it).
    """

    text: str
    kind: str
    endpoint: str
    nsid: int = 1

    def __str__(self) -> str:
        return self.text


def _nsid(text: str | None, whole: str) -> int:
    if text is None:
        return 1
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= MAX_NSID:
        raise AddressError(
            f"{whole}: {text!r} is not a namespace id: it is a number from 1 to {MAX_NSID}"
        )
    return int(text)


def _pci(match: re.Match[str], text: str) -> Address:
    domain, bus, device, function, rest = match.groups()
    if int(device, 16) > 0x1F or int(function, 16) > 7:
        raise AddressError(
            f"{text}: not a PCI address: device goes from 00 to 1f and function from 0 to 7"
        )
    endpoint = f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()
    return Address(text, "pci", endpoint, _nsid(rest, text))


def parse_address(text: str) -> Address:
    """Understands an address. Nothing is opened or looked up.

    Raises AddressError, with the syntax that was expected.
    """
    if not text or "\0" in text:
        raise AddressError(f"{text!r} is not an address: give a PCI address or an image file")
    match = _PCI.fullmatch(text)
    if match:
        return _pci(match, text)
    match = _SCHEME.fullmatch(text)
    if match is None:
        return Address(text, "file", text)
    scheme, rest = match.group(1).lower(), match.group(2)
    if scheme == "file":
        if not rest:
            raise AddressError(f"{text}: the path is missing: file:disk.img")
        return Address(text, "file", rest)
    if scheme == "qtest":
        if not rest:
            raise AddressError(f"{text}: the path is missing: qtest:disk.img")
        option = _NSID_OPTION.fullmatch(rest)
        return Address(text, scheme, rest, _nsid(option and option.group(1), text))
    if scheme == "vfio-user":
        socket = re.fullmatch(r"(/.*?)(?:/([0-9]+))?", rest, re.S)
        if socket is None:
            raise AddressError(f"{text}: an absolute socket path is missing: {scheme}:/run/x/cntrl")
        return Address(text, scheme, socket.group(1), _nsid(socket.group(2), text))
    raise AddressError(
        f"{text}: unknown kind of address {scheme!r}: use 0000:01:00.0, vfio-user:/path, "
        f"file:path, or ./{text} for a file of that name"
    )
