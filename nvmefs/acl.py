"""POSIX access control lists, as Linux keeps them in extended attributes (posix_acl_xattr.h, acl(5)).

Below: nothing.  Above: filesystem.py, where modes and lists must agree.

The kernel checks permissions; what it leaves to a filesystem is to keep the mode and the access list in step
(setting either changes the other) and to hand default lists down to what is created in a directory.
"""

from __future__ import annotations

import errno
import stat
import struct
from dataclasses import dataclass, replace

from nvmefs.errors import FsError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = 2
_ENTRY = struct.Struct("<HHI")
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One line of a list: which kind, rwx bits, and the user or group it names."""

    tag: int
    permissions: int
    id: int = _NO_ID


Acl = list[AclEntry]


def decode(value: bytes) -> Acl:
    """The list in an attribute value; [] if it has no entries. Raises FsError(EINVAL, EOPNOTSUPP)."""
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size:
        raise FsError(errno.EINVAL, f"an access control list of {len(value)} bytes")
    if int.from_bytes(value[:4], "little") != _VERSION:
        raise FsError(errno.EOPNOTSUPP, "an access control list of another version")
    acl = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[4:])]
    _check(acl)
    return acl


def _check(acl: Acl) -> None:
    """The rules of acl_valid(3): order, each basic entry once, a mask where names are used."""
    tags = [entry.tag for entry in acl]
    rules = [
        not acl or all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)),
        tags == sorted(tags),
        tags.count(MASK) == (1 if USER in tags or GROUP in tags else min(tags.count(MASK), 1)),
        all(entry.permissions <= 7 for entry in acl),
        set(tags) <= {USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER},
    ]
    if not all(rules):
        raise FsError(errno.EINVAL, "an access control list that breaks the rules of acl(5)")


def encode(acl: Acl) -> bytes:
    """The attribute value of a list."""
    return _VERSION.to_bytes(4, "little") + b"".join(
        _ENTRY.pack(entry.tag, entry.permissions, entry.id) for entry in acl
    )


def mode_of(acl: Acl) -> int:
    """The nine permission bits that an access list implies; the mask stands for the group if there is one."""
    bits = {entry.tag: entry.permissions for entry in acl}
    return bits[USER_OBJ] << 6 | bits.get(MASK, bits[GROUP_OBJ]) << 3 | bits[OTHER]


def is_minimal(acl: Acl) -> bool:
    """Whether the mode says all that the list says."""
    return len(acl) == 3


def with_mode(acl: Acl, mode: int) -> Acl:
    """The access list after chmod(2)."""
    group = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    new = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return [replace(entry, permissions=new.get(entry.tag, entry.permissions)) for entry in acl]


def inherited(default: Acl, mode: int) -> Acl:
    """The access list of a new file under a directory's default list, for the mode asked for."""
    return with_mode(default, mode & mode_of(default))


def merge_mode(mode: int, acl: Acl) -> int:
    """`mode` with the permission bits of an access list."""
    return stat.S_IFMT(mode) | mode & 0o7000 | mode_of(acl)
