"""Access control lists in words, as tar archives hold them: "user::rw-,user:1000:r--,mask::r--,...".

Below: nvmefs.acl.  Above: archive.py.
"""

from __future__ import annotations

import grp
import pwd

from mkfs.populate.source import wrong
from nvmefs import acl
from nvmefs.acl import AclEntry

TAGS = {
    "user": (acl.USER_OBJ, acl.USER),
    "group": (acl.GROUP_OBJ, acl.GROUP),
    "mask": (acl.MASK, acl.MASK),
    "other": (acl.OTHER, acl.OTHER),
}
SHORT = {"u": "user", "g": "group", "m": "mask", "o": "other"}


def parse_acl(text: str, what: str) -> bytes:
    """The value of the attribute, in the order that it must have. Raises ToolError naming the entry."""
    lines = text.replace("\n", ",").split(",")
    entries = [
        parse_entry(line, what) for line in (raw.split("#")[0].strip() for raw in lines) if line
    ]
    return acl.encode(sorted(entries, key=lambda entry: (entry.tag, entry.id)))


def parse_entry(line: str, what: str) -> AclEntry:
    """'user:NAME:rwx'; star adds the number, 'user:NAME:rwx:1000', which is believed."""
    kind, _, rest = line.partition(":")
    fields = rest.split(":")
    tags = TAGS.get(SHORT.get(kind, kind))
    if kind in ("mask", "m", "other", "o") and len(fields) == 1:
        fields = ["", *fields]  # Solaris writes 'mask:rwx'
    if tags is None or len(fields) not in (2, 3) or not set(fields[1]) <= set("rwx-"):
        raise wrong(what, f"{line!r} is no entry of an access control list")
    name, permissions = fields[0], fields[1]
    bits = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in permissions)
    if not name:
        return AclEntry(tags[0], bits)
    return AclEntry(tags[1], bits, number_of(tags[1], name, fields[2:], what))


def number_of(tag: int, name: str, given: list[str], what: str) -> int:
    """The user or group that an entry names."""
    for text in (*given, name):
        if text.isascii() and text.isdecimal() and int(text) < 2**32 - 1:
            return int(text)
    try:
        return pwd.getpwnam(name).pw_uid if tag == acl.USER else grp.getgrnam(name).gr_gid
    except KeyError:
        raise wrong(
            what, f"its access control list names {name!r}, whom nobody here knows"
        ) from None
