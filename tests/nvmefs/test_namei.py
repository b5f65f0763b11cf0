"""Names: every error in its place, and rename in all its forms."""

from __future__ import annotations

import errno
import itertools
import stat
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem
from nvmefs.items import INODE_APPEND, INODE_IMMUTABLE
from nvmefs.layout import MAX_LINKS, MAX_SYMLINK_BYTES, ROOT_INODE
from nvmefs.transaction import Transaction
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.model import DIRECTORY, FILE, read_back

ROOT = ROOT_INODE
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


async def refused(number: int, call: Awaitable[object]) -> None:
    with pytest.raises(FsError) as caught:
        await call
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


async def set_flags(filesystem: Filesystem, number: int, flags: int) -> None:
    def apply(tx: Transaction) -> None:
        inode = filesystem.inodes.get(tx, number)
        tx.touch(inode)
        inode.flags = flags

    await filesystem.transactions.run(apply)


async def populate(filesystem: Filesystem) -> dict[str, int]:
    """file, other, dir/, dir/sub/, dir/full/x, empty/."""
    numbers = {"root": ROOT}
    for parent, name, mode in (
        ("root", "file", FILE), ("root", "other", FILE), ("root", "dir", DIRECTORY),
        ("dir", "sub", DIRECTORY), ("dir", "full", DIRECTORY), ("full", "x", FILE),
        ("root", "empty", DIRECTORY),
    ):  # fmt: skip
        inode = await filesystem.create(numbers[parent], name.encode(), mode, 1, 2)
        numbers[name] = inode.number
    return numbers


async def test_errors_of_adding() -> None:
    async with mounted(await fresh()) as fs:
        n = await populate(fs)
        adding: list[Callable[[int, bytes], Awaitable[object]]] = [
            lambda parent, name: fs.create(parent, name, FILE, 0, 0),
            lambda parent, name: fs.create(parent, name, DIRECTORY, 0, 0),
            lambda parent, name: fs.symlink(parent, name, b"target", 0, 0),
            lambda parent, name: fs.link(n["other"], parent, name),
            lambda parent, name: fs.rename(ROOT, b"other", parent, name),
        ]
        for add in adding:
            for taken in (b".", b".."):
                with pytest.raises(FsError):
                    await add(ROOT, taken)
            await refused(errno.ENOTDIR, add(n["file"], b"name"))
            await refused(errno.ESTALE, add(9999, b"name"))
            await refused(errno.ENAMETOOLONG, add(ROOT, b"n" * 256))
        for add in adding[:4]:
            await refused(errno.EEXIST, add(ROOT, b"file"))
            await refused(errno.EEXIST, add(ROOT, b"dir"))
        await refused(errno.EPERM, fs.link(n["dir"], ROOT, b"hard"))
        await refused(
            errno.ENAMETOOLONG, fs.symlink(ROOT, b"l", b"t" * (MAX_SYMLINK_BYTES + 1), 0, 0)
        )
        await refused(errno.ENOENT, fs.symlink(ROOT, b"l", b"", 0, 0))
        removed = await fs.rmdir(ROOT, b"empty")
        for add in adding:
            await refused(errno.ENOENT, add(removed.number, b"name"))


async def test_errors_of_removing() -> None:
    async with mounted(await fresh()) as fs:
        n = await populate(fs)
        await refused(errno.ENOENT, fs.unlink(ROOT, b"absent"))
        await refused(errno.ENOENT, fs.rmdir(ROOT, b"absent"))
        await refused(errno.EISDIR, fs.unlink(ROOT, b"dir"))
        await refused(errno.ENOTDIR, fs.rmdir(ROOT, b"file"))
        await refused(errno.ENOTEMPTY, fs.rmdir(ROOT, b"dir"))
        await refused(errno.EINVAL, fs.rmdir(ROOT, b"."))
        await refused(errno.ENOTEMPTY, fs.rmdir(n["dir"], b".."))
        await refused(errno.ENOTDIR, fs.unlink(n["file"], b"x"))
        await refused(errno.EINVAL, fs.readlink(n["file"]))
        gone = await fs.unlink(ROOT, b"file")
        await refused(errno.ENOENT, fs.link(gone.number, ROOT, b"again"))


@pytest.mark.parametrize("flags", [INODE_IMMUTABLE, INODE_APPEND])
async def test_immutable_and_append_only(flags: int) -> None:
    async with mounted(await fresh()) as fs:
        n = await populate(fs)
        await set_flags(fs, n["file"], flags)
        await refused(errno.EPERM, fs.unlink(ROOT, b"file"))
        await refused(errno.EPERM, fs.rename(ROOT, b"file", ROOT, b"new"))
        await refused(errno.EPERM, fs.rename(ROOT, b"other", ROOT, b"file"))
        await refused(errno.EPERM, fs.link(n["file"], ROOT, b"hard"))
        await set_flags(fs, n["full"], flags)
        await refused(errno.EPERM, fs.unlink(n["full"], b"x"))
        await refused(errno.EPERM, fs.rename(n["full"], b"x", ROOT, b"x"))
        if flags == INODE_IMMUTABLE:
            await refused(errno.EPERM, fs.create(n["full"], b"new", FILE, 0, 0))
        else:
            await fs.create(n["full"], b"new", FILE, 0, 0)


async def test_too_many_links() -> None:
    async with mounted(await fresh()) as fs:
        n = await populate(fs)

        def many(tx: Transaction) -> None:
            for name in ("file", "dir"):
                inode = fs.inodes.get(tx, n[name])
                tx.touch(inode)
                inode.nlink = MAX_LINKS

        await fs.transactions.run(many)
        await refused(errno.EMLINK, fs.link(n["file"], ROOT, b"hard"))
        await refused(errno.EMLINK, fs.create(n["dir"], b"new", DIRECTORY, 0, 0))
        await refused(errno.EMLINK, fs.rename(ROOT, b"empty", n["dir"], b"moved"))
        assert (await fs.getattr(ROOT)).nlink == 4


async def test_rename_of_each_over_each() -> None:
    """(what, over what, flags) -> errno, or 0 and then what stands where."""
    sources = ["file", "empty", "dir"]
    targets = ["new", "other", "file", "empty", "dir"]
    for source, target, flags in itertools.product(
        sources, targets, (0, NOREPLACE, EXCHANGE, 3, WHITEOUT, WHITEOUT | NOREPLACE, 6, 8)
    ):
        namespace = await fresh()
        async with mounted(namespace) as fs:
            n = await populate(fs)
            exists, same = target != "new", source == target
            source_dir, target_dir = source != "file", target in ("empty", "dir")
            expected = 0
            if flags in (3, 6, 8):
                expected = errno.EINVAL
            elif flags == EXCHANGE:
                expected = 0 if exists else errno.ENOENT
            elif exists and flags & NOREPLACE:
                expected = errno.EEXIST
            elif exists and not same:
                if source_dir and not target_dir:
                    expected = errno.ENOTDIR
                elif target_dir and not source_dir:
                    expected = errno.EISDIR
                elif target == "dir":
                    expected = errno.ENOTEMPTY
            call = fs.rename(ROOT, source.encode(), ROOT, target.encode(), flags)
            before = await read_back(fs)
            if expected:
                await refused(expected, call)
                assert await read_back(fs) == before
                continue
            replaced = await call
            found = (await read_back(fs))[ROOT].names
            assert found[target.encode()] == n[source]
            if flags == EXCHANGE:
                assert found[source.encode()] == n[target]
                assert replaced is None
            elif not same:
                if flags & WHITEOUT:
                    left = await fs.getattr(found[source.encode()])
                    assert (left.mode, left.rdev, left.nlink) == (stat.S_IFCHR, 0, 1)
                else:
                    assert source.encode() not in found
                assert (replaced.number if replaced else None) == (n[target] if exists else None)
        assert check(namespace.blocks) == []


async def test_a_directory_does_not_move_below_itself() -> None:
    namespace = await fresh()
    async with mounted(namespace) as fs:
        n = await populate(fs)
        for parent in ("dir", "sub", "full"):
            await refused(errno.EINVAL, fs.rename(ROOT, b"dir", n[parent], b"moved"))
        await refused(errno.EINVAL, fs.rename(ROOT, b"dir", n["dir"], b"sub", EXCHANGE))
        await refused(errno.EINVAL, fs.rename(n["dir"], b"sub", ROOT, b"dir", EXCHANGE))
        await refused(errno.ENOTEMPTY, fs.rename(n["dir"], b"sub", ROOT, b"dir"))
    assert check(namespace.blocks) == []


async def test_directories_exchanged_across_parents() -> None:
    namespace = await fresh()
    async with mounted(namespace) as fs:
        n = await populate(fs)
        await fs.rename(n["dir"], b"full", ROOT, b"empty", EXCHANGE)
        assert (await fs.getattr(n["full"])).parent == ROOT
        assert (await fs.getattr(n["empty"])).parent == n["dir"]
        parent = await fs.lookup(n["full"], b"..")
        assert parent is not None
        assert parent.number == ROOT
        await fs.rename(n["dir"], b"sub", ROOT, b"file", EXCHANGE)
        assert (await fs.getattr(n["dir"])).nlink == 3
        assert (await fs.getattr(ROOT)).nlink == 5
        await fs.rename(n["full"], b"x", n["dir"], b"full", EXCHANGE)
        assert (await fs.getattr(n["full"])).nlink == 3
    assert check(namespace.blocks) == []


async def test_renaming_one_of_two_names_over_the_other_does_nothing() -> None:
    async with mounted(await fresh()) as fs:
        n = await populate(fs)
        await fs.link(n["file"], n["dir"], b"hard")
        before = await read_back(fs)
        assert await fs.rename(ROOT, b"file", n["dir"], b"hard") is None
        assert await read_back(fs) == before


async def test_set_group_id_directories() -> None:
    async with mounted(await fresh()) as fs:
        top = await fs.create(ROOT, b"top", DIRECTORY | stat.S_ISGID, 5, 77)
        file = await fs.create(top.number, b"file", FILE, 5, 6)
        below = await fs.create(top.number, b"below", DIRECTORY, 5, 6)
        assert (file.gid, file.mode & stat.S_ISGID) == (77, 0)
        assert (below.gid, below.mode & stat.S_ISGID) == (77, stat.S_ISGID)


async def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the inodes that take part in an operation change, and in which times."""
    async with mounted(await fresh()) as fs:
        n = await populate(fs)
        clock = itertools.count(10**6)
        stamp = SimpleNamespace(st_ctime_ns=0)
        still = SimpleNamespace(utime=lambda _: None, fstat=lambda _: stamp)
        monkeypatch.setattr("nvmefs.clock.os", still)
        steps: list[tuple[Callable[[], Awaitable[object]], dict[str, str]]] = [
            (lambda: fs.link(n["file"], n["dir"], b"l"), {"dir": "mc", "file": "c"}),
            (lambda: fs.rename(ROOT, b"other", n["dir"], b"o"), {"dir": "mc", "root": "mc", "other": "c"}),
            (lambda: fs.rename(n["dir"], b"sub", ROOT, b"s"), {"dir": "mc", "root": "mc", "sub": "c"}),
            (lambda: fs.unlink(n["dir"], b"l"), {"dir": "mc", "file": "c"}),
            (lambda: fs.write(n["file"], 0, b"x"), {"file": "mc"}),
            (lambda: fs.files.truncate(n["file"], 1), {"file": "mc"}),
            (lambda: fs.setxattr(n["file"], b"user.x", b""), {"file": "c"}),
            (lambda: fs.read(n["file"], 0, 1), {}),
        ]  # fmt: skip
        for step, changes in steps:
            when = (next(clock), 5)
            stamp.st_ctime_ns = when[0] * 10**9 + when[1]
            await step()
            for name, number in n.items():
                inode = await fs.getattr(number)
                changed = "m" * ((inode.mtime_s, inode.mtime_ns) == when)
                changed += "c" * ((inode.ctime_s, inode.ctime_ns) == when)
                assert changed == changes.get(name, ""), name


async def test_a_directory_that_counts_too_few_is_damage_and_nothing_changes() -> None:
    """What no mount writes: an image can say it, and the counters must not go below what can be stored."""
    async with mounted(await fresh()) as fs:
        n = await populate(fs)

        async def count(nlink: int, entries: int) -> None:
            def apply(tx: Transaction) -> None:
                directory = fs.inodes.get(tx, n["dir"])
                tx.touch(directory)
                directory.nlink, directory.entries = nlink, entries

            await fs.transactions.run(apply)

        for nlink, entries in ((2, 2), (0, 2), (4, 0)):
            await count(nlink, entries)
            await refused(errno.EUCLEAN, fs.rmdir(n["dir"], b"sub"))
            await refused(errno.EUCLEAN, fs.rename(n["dir"], b"sub", ROOT, b"moved"))
            await refused(errno.EUCLEAN, fs.rename(n["dir"], b"sub", ROOT, b"empty"))
            await fs.transactions.commit()
        await count(4, 2)
        await fs.rmdir(n["dir"], b"sub")
