"""What an image must survive, be it as it may.

  * Mounted read-only and walked: refusal, an error that says the filesystem is damaged, or what makes sense.
  * Mounted writable and worked on: the same.
  * Checked: findings. Repaired: nothing is found afterwards, by fsck and by a second checker; and then
    everything can be mounted, walked, read, written and removed without any error.

Anything else that is raised is a bug, and so are time and memory without bound (campaign.py sets both).
"""

from __future__ import annotations

import errno
import stat
from contextlib import suppress

from mkfs.check.load import Unusable
from mkfs.check.run import check
from mkfs.repair.engine import repair
from mkfs.repair.policy import everything
from nvmefs.attributes import AttributeChanges
from nvmefs.errors import FsError, MountRefused
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, MAX_FILE_BYTES, ROOT_INODE
from tests.support.checker import check as second_opinion
from tests.support.ram import RamNamespace

DAMAGE = {errno.EUCLEAN, errno.EIO, errno.ESTALE, errno.EROFS}
WORK = {
    *DAMAGE, errno.ENOSPC, errno.EPERM, errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EISDIR,
    errno.ENOTDIR, errno.EMLINK, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.EOPNOTSUPP, errno.ENODATA,
    errno.ENXIO,
}  # fmt: skip
Name = tuple[int, bytes, int]  # directory, name, inode
MOST_INODES = 2000  # a walk ends, even around a circle of directories
READ_BYTES = 65536


class Bug(AssertionError):
    """An image did something that no image may."""


async def examine(image: RamNamespace) -> str:
    """All of it; what became of the image, in a word. Raises Bug, or whatever the bug has raised."""
    found = await mount(image.copy(), Options(read_only=True))
    await mount(image.copy(), Options(), known=found)
    before = dict(image.blocks)
    try:
        outcome = await repair(image.device(), everything)
    except Unusable as error:
        if found is not None and "ro_compat" not in str(error):  # which allows to read
            raise Bug(f"mounted, and fsck refuses: {error}") from None
        return "unusable"
    first = outcome.first
    if outcome.left:
        if any(
            "no block is free" in failure or "no free" in failure for failure in outcome.failures
        ):
            return "full"
        raise Bug(f"left: {[str(each) for each in outcome.left[:5]]}, {outcome.failures[:5]}")
    if first.findings.clean and not first.findings.remarks and image.blocks != before:
        raise Bug("a clean filesystem was written to")
    await require_sound(image)
    return "clean" if first.findings.clean else "repaired"


async def require_sound(image: RamNamespace) -> None:
    """Clean for both checkers, and everything works."""
    report = await check(image.device())
    if report.findings.lines() or report.findings.remarks:
        raise Bug(f"after the repair: {report.findings.lines()[:5]} {report.findings.remarks}")
    faults = second_opinion(image.blocks)
    if faults:
        raise Bug(f"the second opinion, after the repair: {faults[:5]}")
    await mount(image, Options(), strict=True)
    report = await check(image.device())
    if report.findings.lines():
        raise Bug(f"after a mount of what was repaired: {report.findings.lines()[:5]}")


async def mount(
    image: RamNamespace,
    options: Options,
    *,
    known: list[Name] | None = None,
    strict: bool = False,
) -> list[Name] | None:
    """Mount, walk unless the names are `known`, and work unless read-only; `strict`: without a single error.

    The names, or None: it was refused.
    """
    try:
        filesystem = await Filesystem.open(image.device(), options)
    except (MountRefused, FsError) as error:
        if strict:
            raise Bug(f"not mounted: {error}") from error
        require_errno(error, DAMAGE | {errno.ENOSPC})
        return None
    found = await walk(filesystem, strict=strict) if known is None else known
    if not options.read_only:
        await work(filesystem, found, strict=strict)
        try:
            await filesystem.close()
        except FsError as error:
            if strict:
                raise Bug(f"not closed: {error}") from error
            require_errno(error, DAMAGE | {errno.ENOSPC})
    return found


def require_errno(error: FsError | MountRefused, allowed: set[int]) -> None:
    if isinstance(error, FsError) and error.errno not in allowed:
        raise Bug(f"errno {errno.errorcode.get(error.errno)}: {error}") from error


# --- reading ------------------------------------------------------------------------------------------


async def walk(filesystem: Filesystem, *, strict: bool) -> list[Name]:
    """Read everything that can be reached; (directory, name, inode) of it."""
    found: list[Name] = []
    waiting, seen = [ROOT_INODE], {ROOT_INODE}
    while waiting and len(seen) < MOST_INODES:
        number = waiting.pop()
        try:
            entries = await look(filesystem, number)
        except FsError as error:
            if strict:
                raise Bug(f"inode {number}: {error}") from error
            require_errno(error, DAMAGE)
            continue
        for name, target in entries:
            found.append((number, name, target))
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return found


async def look(filesystem: Filesystem, number: int) -> list[tuple[bytes, int]]:
    """What stat, readdir, readlink, read and getxattr tell of an inode; the names in it."""
    inode = await filesystem.getattr(number)
    require(0 <= inode.size_bytes <= MAX_FILE_BYTES, f"inode {number}: size {inode.size_bytes}")
    require(0 <= inode.nlink < 2**31, f"inode {number}: link count {inode.nlink}")
    entries: list[tuple[bytes, int]] = []
    if inode.is_dir:
        after = 0
        while found := await filesystem.readdir(number, after, 100):
            for cookie, entry in found:
                require(cookie > after, f"inode {number}: cookie {cookie} after {after}")
                require(0 < len(entry.name) <= 255, f"inode {number}: name {entry.name!r}")
                require(not {*b"/\0"} & {*entry.name}, f"inode {number}: name {entry.name!r}")
                after = cookie
                entries.append((entry.name, entry.inode))
            if len(entries) > MOST_INODES:
                break
    elif stat.S_ISLNK(inode.mode):
        target = await filesystem.readlink(number)
        require(len(target) == inode.size_bytes, f"inode {number}: a target of {len(target)} bytes")
    elif stat.S_ISREG(inode.mode):
        for offset in {0, max(0, inode.size_bytes - READ_BYTES)}:
            data = await filesystem.read(number, offset, READ_BYTES)
            require(
                len(data) == min(READ_BYTES, inode.size_bytes - offset),
                f"inode {number}: {len(data)} bytes at {offset} of {inode.size_bytes}",
            )
    for name in await filesystem.listxattr(number):
        await filesystem.getxattr(number, name)
    return entries


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Bug(f"a mount has told nonsense: {what}")


# --- writing ------------------------------------------------------------------------------------------


async def work(filesystem: Filesystem, found: list[Name], *, strict: bool) -> None:
    """Create, write, rename and remove, on what is there."""
    await attempt(create(filesystem), strict)
    for at, (directory, name, number) in enumerate(found[:9]):
        await attempt(change(filesystem, number), strict)
        if at % 3 == 0:
            await attempt(filesystem.rename(directory, name, ROOT_INODE, b"moved %d" % at), False)
        elif at % 3 == 1:
            await attempt(filesystem.link(number, ROOT_INODE, b"linked %d" % at), False)
        else:
            await attempt(remove(filesystem, directory, name), False)
    await attempt(filesystem.transactions.commit(), strict)


async def attempt(operation: object, strict: bool) -> None:
    """Await it; errors that tell of damage, or of what cannot be, are as good as success."""
    try:
        await operation  # type: ignore[misc]
    except FsError as error:
        if strict and error.errno in DAMAGE:
            raise Bug(f"while writing: {error}") from error
        require_errno(error, WORK)


async def create(filesystem: Filesystem) -> None:
    made = await filesystem.create(ROOT_INODE, b"hostile", stat.S_IFREG | 0o644, 0, 0)
    await filesystem.write(made.number, 0, b"h" * 3 * BLOCK_BYTES)
    await filesystem.setxattr(made.number, b"user.h", b"h" * 1000)
    await filesystem.create(ROOT_INODE, b"hostile directory", stat.S_IFDIR | 0o755, 0, 0)
    await filesystem.fsync(made.number)


async def change(filesystem: Filesystem, number: int) -> None:
    inode = await filesystem.getattr(number)
    await filesystem.setattr(number, AttributeChanges(mode=inode.mode & 0o7777 ^ 0o20))
    if stat.S_ISREG(inode.mode):
        await filesystem.write(number, 100, b"w" * 5000)
        await filesystem.setattr(number, AttributeChanges(size=max(0, inode.size_bytes // 2)))


async def remove(filesystem: Filesystem, directory: int, name: bytes) -> None:
    with suppress(IsADirectoryError):
        try:
            gone = await filesystem.unlink(directory, name)
        except FsError as error:
            if error.errno != errno.EISDIR:
                raise
            gone = await filesystem.rmdir(directory, name)
        if not gone.nlink:
            await filesystem.reap(gone.number)
