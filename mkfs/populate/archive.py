"""A tar archive as a source: plain or compressed, from a file or a pipe, read once from front to end.

Below: tarfile, of Python's own library.  Above: fill.py.

Understood are the formats of tar(5): v7, ustar, GNU (long names, sparse files) and pax (times in nanoseconds,
long everything, sparse files, extended attributes and access lists as star, GNU tar and libarchive write them).
Owners are taken by number. An archive that does not end as it must is an error, not the end of it.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from importlib import import_module
from types import TracebackType
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from mkfs.cli import ToolError
from mkfs.populate.acltext import parse_acl
from mkfs.populate.source import Entry, Range, shown, wrong
from nvmefs import acl
from nvmefs.clock import Timestamp

NS = 10**9
NO_ID = 2**32 - 1
MAGIC_BYTES = 6
ATTRIBUTES = "SCHILY.xattr."
BASE64_ATTRIBUTES = "LIBARCHIVE.xattr."
ACLS = {"SCHILY.acl.access": acl.ACCESS, "SCHILY.acl.default": acl.DEFAULT}
TYPES = {
    **dict.fromkeys(tarfile.REGULAR_TYPES, stat.S_IFREG),
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
VOLUME_LABEL = b"V"
DAMAGED: tuple[type[Exception], ...] = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    # What tarfile itself stumbles over: numbers that are none, and headers about headers without end.
    *(ValueError, LookupError, ArithmeticError, RecursionError),
)


def open_zstd(stream: IO[bytes]) -> IO[bytes]:
    """Python has zstd from 3.14 on."""
    try:
        module: Any = import_module("compression.zstd")
    except ImportError:
        raise ToolError(
            "this Python does not read zstd: use a pipe, zstd -dc ARCHIVE | mkfs.nvmefs -d - ..."
        ) from None
    opened: IO[bytes] = module.ZstdFile(stream)
    return opened


COMPRESSIONS: Sequence[tuple[bytes, Callable[[Any], Any]]] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
    (b"\x5d\0\0", lzma.LZMAFile),
    (b"BZh", bz2.BZ2File),
    (b"\x28\xb5\x2f\xfd", open_zstd),
)


class Member(tarfile.TarInfo):
    """A header. tarfile takes a wrong one for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without an end mark: it was cut short") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


class ArchiveSource:
    """The members of an archive; '-' is standard input."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.shown = "standard input" if path == "-" else path
        self.stack = ExitStack()
        self.archive: tarfile.TarFile

    def __enter__(self) -> ArchiveSource:
        with ExitStack() as stack:
            raw: Any = sys.stdin.buffer
            if self.path != "-":
                raw = stack.enter_context(open(self.path, "rb"))
            stream = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
            magic = stream.peek(MAGIC_BYTES)
            for prefix, decompress in COMPRESSIONS:
                if magic.startswith(prefix):
                    stream = stack.enter_context(decompress(stream))
            self.stream: Any = stream
            with self._explained():
                self.archive = stack.enter_context(
                    tarfile.open(
                        fileobj=stream, mode="r|", tarinfo=Member,
                        encoding="utf-8", errors="surrogateescape",
                    )
                )  # fmt: skip
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.stack.close()

    def _explained(self) -> Explained:
        return Explained(self.shown)

    def entries(self) -> Iterator[Entry]:
        """See Source."""
        while True:
            with self._explained():
                member = self.archive.next()
            if member is None:
                self._read_to_the_end()
                return
            members: list[tarfile.TarInfo] = vars(self.archive)["members"]
            members.clear()  # it would keep them all
            if member.type != VOLUME_LABEL:
                yield self._entry(member)

    def _read_to_the_end(self) -> None:
        """Only there does a compressed stream say whether it was whole; and a pipe is read to its end."""
        with self._explained():
            while self.stream.read(1 << 20):
                pass

    def _entry(self, member: tarfile.TarInfo) -> Entry:
        path = clean(member.name, self.shown)
        what = f"{self.shown}: {shown(path)}"
        if member.islnk():
            return Entry(path, what, 0, link_to=clean(member.linkname, what))
        kind = TYPES.get(member.type)
        if kind is None:
            raise wrong(what, f"a member of type {member.type!r} cannot be kept")
        if not 0 <= member.uid < NO_ID or not 0 <= member.gid < NO_ID:
            raise wrong(what, f"its owner {member.uid}:{member.gid} is none")
        mtime = time_of(member.pax_headers.get("mtime"), member.mtime, what)
        entry = Entry(
            path, what, kind | member.mode & 0o7777, member.uid, member.gid,
            mtime, time_of(member.pax_headers.get("atime"), mtime, what),
            xattrs=attributes(member, what),
        )  # fmt: skip
        if kind == stat.S_IFLNK:
            entry.target = encoded(member.linkname)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry.rdev = device_number(member, what)
        elif kind == stat.S_IFREG:
            if member.size < 0:
                raise wrong(what, f"a size of {member.size} bytes is none")
            entry.size = member.size
            entry.data = MemberData(self.archive, member, what, self._explained)
        return entry


class Explained:
    """What is wrong with an archive becomes one line."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(value, DAMAGED):
            raise wrong(self.what, f"is not a sound archive: {value}") from value
        if isinstance(value, OSError):
            raise wrong(self.what, value.strerror or str(value)) from value


class MemberData:
    """The bytes of a member: those of its ranges, one after the other in the archive."""

    def __init__(
        self,
        archive: tarfile.TarFile,
        member: tarfile.TarInfo,
        what: str,
        explained: Callable[[], Explained],
    ) -> None:
        self.archive = archive
        self.what = what
        self.member = member
        self.explained = explained
        self.at = member.offset_data
        self.sparse: list[Range] | None = getattr(member, "sparse", None)

    def ranges(self) -> Iterator[Range]:
        """Of a sparse member what it lists, in order and inside of its size."""
        if self.sparse is None:
            if self.member.size:
                yield 0, self.member.size
            return
        end = 0
        for start, length in self.sparse:
            if not length:
                continue  # the end, and filling
            if start < end or length < 0 or start + length > self.member.size:
                raise wrong(self.what, "its map of holes is not possible")
            end = start + length
            yield start, length

    def read(self, offset: int, length: int) -> bytes:
        """The next `length` bytes."""
        with self.explained():
            stream: Any = self.archive.fileobj
            stream.seek(self.at)
            data: bytes = stream.read(length)
            if len(data) != length:
                raise tarfile.ReadError(f"it ends in the midst of {self.member.name}")
        self.at += length
        return data


# --- the fields of a header -----------------------------------------------------------------------


def encoded(text: str) -> bytes:
    """What stood in the archive."""
    return text.encode("utf-8", "surrogateescape")


def clean(name: str, what: str) -> bytes:
    """A path without '.', empty parts and slashes at its ends. Raises ToolError for what leads outside."""
    parts = [part for part in encoded(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise wrong(what, f"the name {name!r} leads out of the archive")
    if any(b"\0" in part for part in parts):
        raise wrong(what, f"the name {name!r} has a zero byte")
    return b"/".join(parts)


def time_of(text: str | None, otherwise: Any, what: str) -> Timestamp:
    """A time of a pax header, '-1.5' or '1700000000.123456789', to the nanosecond."""
    if text is None:
        return otherwise if isinstance(otherwise, tuple) else divmod(int(otherwise * NS), NS)
    try:
        nanoseconds = int(Decimal(text) * NS // 1)
    except (ArithmeticError, ValueError):
        raise wrong(what, f"the time {text!r} is none") from None
    seconds, rest = divmod(nanoseconds, NS)
    if not -(2**63) <= seconds < 2**63:
        raise wrong(what, f"the time {text!r} is none")
    return seconds, rest


def device_number(member: tarfile.TarInfo, what: str) -> int:
    """As stat(2) tells it."""
    if not (0 <= member.devmajor < 1 << 12 and 0 <= member.devminor < 1 << 20):
        raise wrong(what, f"the device {member.devmajor}:{member.devminor} is none")
    return os.makedev(member.devmajor, member.devminor)


def attributes(member: tarfile.TarInfo, what: str) -> dict[bytes, bytes]:
    """Extended attributes and access lists."""
    found: dict[bytes, bytes] = {}
    for key, value in sorted(member.pax_headers.items()):
        if key.startswith(ATTRIBUTES):
            name = key.removeprefix(ATTRIBUTES).replace("%3D", "=").replace("%25", "%")  # GNU tar
            found[encoded(name)] = encoded(value)
        elif key.startswith(BASE64_ATTRIBUTES):
            try:
                data = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
            except (binascii.Error, ValueError):
                raise wrong(what, f"{key} is not base64") from None
            found.setdefault(unquote_to_bytes(key.removeprefix(BASE64_ATTRIBUTES)), data)
        elif key in ACLS:
            found[ACLS[key]] = parse_acl(value, what)
    return found
