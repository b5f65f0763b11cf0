"""nvmefs image --obscure: the same shape without names and contents; a check finds what it did before."""

from __future__ import annotations

import itertools
import os
import random
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkfs.check.run import check
from mkfs.fsck import main as fsck
from mkfs.metadata_image import main as image
from mkfs.mkfs import main as mkfs
from mkfs.obscure.image import obscure
from mkfs.obscure.items import CAPABILITY
from mkfs.obscure.names import NAME_BYTES, Permutation
from nvmefs import acl
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import BLOCK_BYTES, GROUP_BLOCKS, STATE_BLOCK, Kind, State, Superblock
from tests.golden.contents import CONTENTS
from tests.golden.make import Image
from tests.golden.make import load as golden
from tests.mkfs.builder import small_tree
from tests.mkfs.test_fsck import IN_ITEMS, Break
from tests.mkfs.test_metadata_image import new_file
from tests.reader import Inode, Reader
from tests.support.images import fresh, mounted
from tests.support.ram import RamNamespace

SECRET = b"the same in each run of the tests"
LABEL = b"label-of-ours"
GONE_WHEN_LISTS_ARE_REBUILT = {"parent-hash", "xattr-hash", "dirent-hash", "list-empty"}
CAPABILITY_VALUE = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
POSSIBLE = bytes(byte if byte in NAME_BYTES else ord("~") for byte in range(256))
LISTS = (Kind.XATTR, Kind.PARENT, Kind.DIRENT)


async def obscured(namespace: RamNamespace, path: Path, secret: bytes = SECRET) -> RamNamespace:
    """The obscured image, read back."""
    with new_file(path) as descriptor:
        os.ftruncate(descriptor, namespace.block_count * BLOCK_BYTES)
        written = await obscure(namespace.device(), descriptor, secret)
        blocks = {}
        at = 0
        while at < namespace.block_count * BLOCK_BYTES:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES
            except OSError:
                break  # holes up to the end
            data = os.pread(descriptor, BLOCK_BYTES, at)
            if any(data):
                blocks[at // BLOCK_BYTES] = data
            at += BLOCK_BYTES
    assert len(blocks) == written
    return RamNamespace(namespace.block_count, blocks)


def bytes_of(namespace: RamNamespace) -> bytes:
    return b"".join(bytes(namespace.blocks[number]) for number in sorted(namespace.blocks))


def met_in(whole: bytes, secrets: set[bytes]) -> list[bytes]:
    """The secrets, each of four bytes or more, that stand in it somewhere."""
    begins = {secret[:4] for secret in secrets}
    met = {begin for at in range(len(whole)) if (begin := whole[at : at + 4]) in begins}
    return [secret for secret in secrets if secret[:4] in met and secret in whole]


async def finding_names(namespace: RamNamespace) -> list[str]:
    report = await check(namespace.device())
    return sorted(report.findings.counts.elements())


# --- the permutation ----------------------------------------------------------------------------------


@given(
    secret=st.binary(max_size=32),
    names=st.integers(1, 255).flatmap(
        lambda length: st.sets(
            st.lists(st.sampled_from(NAME_BYTES), min_size=length, max_size=length).map(bytes),
            min_size=1,
            max_size=20,
        )
    ),
)
def test_names_stay_different_and_possible(secret: bytes, names: set[bytes]) -> None:
    permutation = Permutation(secret, NAME_BYTES, (b".", b".."))
    result = {permutation(name) for name in names}
    assert len(result) == len(names)
    assert {len(name) for name in result} == {len(name) for name in names}
    for name in result - names:
        assert not set(name) - set(NAME_BYTES)
        assert name not in (b".", b"..")


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_name_of_a_length(length: int) -> None:
    alphabet = b".abcdef"
    every = {bytes(letters) for letters in itertools.product(alphabet, repeat=length)}
    permutation = Permutation(SECRET, alphabet, (b".", b".."))
    assert {permutation(name) for name in every} == every
    assert permutation(b".") == b"."
    assert permutation(b"..") == b".."


def test_every_byte() -> None:
    permutation = Permutation(SECRET, NAME_BYTES, (b".", b".."))
    every = [bytes((byte,)) for byte in NAME_BYTES]
    assert {permutation(name) for name in every} == set(every)
    with pytest.raises(ValueError, match="alphabet"):
        permutation(b"a/b")


def test_another_key_makes_other_names() -> None:
    one, other = (Permutation(secret, NAME_BYTES) for secret in (b"one", b"other"))
    name = b"the name of a file"
    assert len({one(name), other(name), name}) == 3
    assert one(name) == Permutation(b"one", NAME_BYTES)(name)


# --- a tree of every sort ---------------------------------------------------------------------------


def long_acl() -> bytes:
    """More entries than stand inside of an attribute's item."""
    users = [acl.AclEntry(acl.USER, 4, 1000 + index) for index in range(80)]
    return acl.encode(
        [
            acl.AclEntry(acl.USER_OBJ, 7),
            *users,
            acl.AclEntry(acl.GROUP_OBJ, 5),
            acl.AclEntry(acl.MASK, 5),
            acl.AclEntry(acl.OTHER, 0),
        ]
    )


class Planted:
    """A tree, and every byte string in it that must not be found again."""

    def __init__(self, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.random = random.Random(5)
        self.secrets: set[bytes] = {LABEL}
        self.used: set[bytes] = set()
        self.names = iter(self.lengths())

    def lengths(self) -> list[int]:
        lengths = [*range(1, 256), *(self.random.randint(5, 40) for _ in range(2000))]
        self.random.shuffle(lengths)
        return lengths

    def text(self, length: int) -> bytes:
        """A name or a content, to be looked for if it is long enough not to be met by chance."""
        while True:
            made = self.random.randbytes(length).translate(POSSIBLE)
            if made not in self.used and made not in (b".", b".."):
                break
        self.used.add(made)
        if length >= 5 or (length == 4 and len(self.used) < 100):
            self.secrets.add(made)
        return made

    def name(self) -> bytes:
        return self.text(next(self.names, 20))

    async def plant(self) -> None:
        fs, parent = self.filesystem, 1
        for depth in range(60):
            parent = (await fs.create(parent, self.name(), stat.S_IFDIR | 0o755, 0, 0)).number
            await self.files(parent, 30 if depth % 10 else 90)
            if depth % 7 == 0:
                await self.attributes(parent, acl.DEFAULT)
        for _ in range(200):  # what was there once
            name = self.name()
            inode = await fs.create(1, name, stat.S_IFREG | 0o600, 0, 0)
            await fs.write(inode.number, 0, self.text(100))
            await fs.unlink(1, name)
            await fs.reap(inode.number)

    async def files(self, parent: int, count: int) -> None:
        fs = self.filesystem
        for index in range(count):
            if index % 9 == 0:
                parts = [self.text(self.random.randint(5, 200)) for _ in range(index % 5 + 1)]
                await fs.symlink(parent, self.name(), b"../" + b"//".join(parts), 0, 0)
                continue
            inode = await fs.create(parent, self.name(), stat.S_IFREG | 0o640, index, 7)
            if index % 5 == 0:
                await fs.write(inode.number, 0, self.text(self.random.randint(5, 3000)))
            elif index % 31 == 0:
                await fs.write(inode.number, 0, self.text(20_000))
            elif index % 4 == 0:
                await fs.link(inode.number, parent, self.name())
                await fs.link(inode.number, 1, self.name())
            if index % 17 == 0:
                await self.attributes(inode.number, acl.ACCESS)

    async def attributes(self, number: int, which: bytes) -> None:
        set_ = self.filesystem.setxattr
        await set_(number, b"user." + self.text(12), self.text(30))
        await set_(number, b"trusted." + self.text(200), self.text(500))
        await set_(number, b"user." + self.text(6), self.text(5000))
        await set_(number, b"security." + self.text(10), self.text(10))
        await set_(number, CAPABILITY, CAPABILITY_VALUE)
        await set_(number, which, long_acl())


async def planted() -> tuple[RamNamespace, set[bytes]]:
    namespace = await fresh(8192, label=LABEL)
    async with mounted(namespace) as filesystem:
        tree = Planted(filesystem)
        await tree.plant()
    return namespace, tree.secrets


def shape(inode: Inode) -> object:
    """All of an inode that an obscured image tells."""
    return (
        replace(inode, inline=b"", entries={}, xattrs={}),
        len(inode.inline),
        sorted((len(name), *leads) for name, leads in inode.entries.items()),
        sorted((len(name), len(value)) for name, value in inode.xattrs.items()),
    )


async def test_shape_stays_and_names_go(tmp_path: Path) -> None:
    namespace, secrets = await planted()
    assert len(secrets) > 2500
    assert len(met_in(bytes_of(namespace), secrets)) > 2500  # so it would find them
    made = await obscured(namespace, tmp_path / "out")
    original, copy = Reader(Image(namespace)), Reader(Image(made))
    assert await finding_names(made) == []
    assert list(copy.inodes) == list(original.inodes)
    for number, inode in original.inodes.items():
        assert shape(copy.inodes[number]) == shape(inode)
    whole = bytes_of(made)
    assert met_in(whole, secrets) == []
    assert Superblock.decode(made.blocks[16], 16).label == b""

    one_to_one(original, copy)
    await all_found_by_a_mount(made, copy)
    kept = (acl.ACCESS, acl.DEFAULT, CAPABILITY)
    met = set()
    for inode in copy.inodes.values():
        for name, value in inode.xattrs.items():
            before = original.inodes[inode.number].xattrs.get(name)
            assert value == (before if name in kept else bytes(len(value)))
            met.add(name.partition(b".")[0] if name not in kept else name)
        if stat.S_ISLNK(inode.mode):
            assert inode.inline.startswith(b"../")
        else:
            assert not any(inode.inline)
    assert met == {*kept, b"user", b"trusted", b"security"}

    lists = {key for key in original.items if key[1] >> 56 in LISTS}
    still = {original.items[key] for key in lists & set(copy.items)}
    assert all(b"posix_acl" in value or b"capability" in value for value in still)


def one_to_one(original: Reader, copy: Reader) -> None:
    """What is one name in the original is one name in the copy, and two are two."""
    became: dict[bytes, bytes] = {}
    for number, inode in original.inodes.items():
        names: dict[int, list[bytes]] = {}
        for name, (child, _) in inode.entries.items():
            names.setdefault(child, []).append(name)
        others: dict[int, list[bytes]] = {}
        for name, (child, _) in copy.inodes[number].entries.items():
            others.setdefault(child, []).append(name)
        for child, here in names.items():
            if len(here) == 1:
                assert became.setdefault(here[0], others[child][0]) == others[child][0]
    assert len(became) > 2000
    assert len(set(became.values())) == len(became)


async def all_found_by_a_mount(made: RamNamespace, copy: Reader) -> None:
    """Every name, target and attribute, read-only."""
    async with mounted(made, Options(read_only=True)) as filesystem:
        seen, todo = set(), [1]
        while todo:
            number = todo.pop()
            for name, (child, _) in copy.inodes[number].entries.items():
                found = await filesystem.lookup(number, name)
                assert found is not None
                assert found.number == child
                if stat.S_ISDIR(found.mode):
                    todo.append(child)
                elif stat.S_ISLNK(found.mode):
                    assert await filesystem.readlink(child) == copy.inodes[child].inline
                for attribute in copy.inodes[child].xattrs:
                    assert await filesystem.getxattr(child, attribute) is not None
                seen.add(child)
        assert len(seen) == len(copy.inodes) - 1


# --- other originals --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
async def test_as_after_the_replay(name: str, tmp_path: Path) -> None:
    """Images of crashes too: of the journal's records nothing is left, but all that they did."""
    namespace = golden(name)
    made = await obscured(namespace, tmp_path / "out")
    before, after = [await check(each.device()) for each in (namespace, made)]
    assert after.findings.lines() == []
    assert after.source.replay.records == 0
    for what in ("inodes", "names", "orphans", "highest_inode"):
        assert getattr(after, what) == getattr(before, what)
    assert after.free_blocks + after.nodes == before.free_blocks + before.nodes
    whole = bytes_of(made)
    for secret in (b"size-1", b"only-in-the-journal", b"file-", b"before", b"journal 0"):
        assert secret not in whole


async def test_two_runs_differ_in_names_only(tmp_path: Path) -> None:
    namespace = golden("kinds")
    one, other = [
        Reader(Image(await obscured(namespace, tmp_path / name, name.encode())))
        for name in ("one", "other")
    ]
    assert [shape(inode) for inode in one.inodes.values()] == [
        shape(inode) for inode in other.inodes.values()
    ]
    assert set(one.inodes[1].entries) != set(other.inodes[1].entries)


async def test_a_tree_that_needs_more_blocks_than_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when leaves that were full are packed less well."""
    namespace = golden("kinds")
    monkeypatch.setattr("mkfs.obscure.image.LEAF_ROOM", 1100)
    monkeypatch.setattr("mkfs.obscure.image.SLOTS_PER_NODE", 7)
    made = await obscured(namespace, tmp_path / "out")
    before, after = [await check(each.device()) for each in (namespace, made)]
    assert after.findings.lines() == []
    assert after.nodes > before.nodes


@pytest.mark.parametrize(("name", "break_it"), IN_ITEMS)
async def test_a_broken_one(name: str, break_it: Break, tmp_path: Path) -> None:
    """Its faults are found again, but for those of where names stand, as the lists are made anew."""
    builder = small_tree()
    break_it(builder)
    namespace = RamNamespace(builder.superblock.block_count, dict(builder.build().blocks))
    expected = await finding_names(namespace)
    assert name in expected
    made = await obscured(namespace, tmp_path / "out")
    found = await finding_names(made)
    assert found == [each for each in expected if each not in GONE_WHEN_LISTS_ARE_REBUILT]


async def test_names_of_attributes(tmp_path: Path) -> None:
    """Slashes stay; what is kept in one namespace is not in another; a list that is none is zeroes."""
    builder = small_tree()
    number = builder.file(1, b"attributed")
    for name in (b"user.way/to/it", b"user.capability", b"unheard-of", b"trusted.posix_acl_access"):
        builder.xattr(number, name, b"a value")
    builder.xattr(number, acl.ACCESS, b"no access list")
    builder.xattr(number, CAPABILITY, b"no capability")
    namespace = RamNamespace(builder.superblock.block_count, dict(builder.build().blocks))
    made = await obscured(namespace, tmp_path / "out")
    assert await finding_names(made) == await finding_names(namespace) == ["xattr-acl"]
    whole = bytes_of(made)
    for secret in (b"way/", b"user.capability", b"unheard", b"d.posix", b"a value", b"no "):
        assert secret not in whole
    assert acl.ACCESS in whole
    assert CAPABILITY in whole


async def test_damaged_blocks_are_not_copied(tmp_path: Path) -> None:
    namespace = RamNamespace(small_tree().superblock.block_count, dict(small_tree().build().blocks))
    last = namespace.block_count - 1
    for number in (18, GROUP_BLOCKS, last):
        namespace.blocks[number] = b"somebody's letter".ljust(BLOCK_BYTES, b"!")
    namespace.blocks[0] = b"somebody's boot code".ljust(BLOCK_BYTES, b"!")
    made = await obscured(namespace, tmp_path / "out")
    expected = ["bitmap-damaged", "journal-superblock", "superblock-damaged"]
    assert await finding_names(namespace) == expected
    assert await finding_names(made) == expected
    assert b"somebody" not in bytes_of(made)


async def test_what_an_error_said_is_left_out(tmp_path: Path) -> None:
    builder = small_tree()
    device = builder.build()
    state = State.decode(device.blocks[STATE_BLOCK], builder.superblock)
    state.flags |= 2
    state.last_error.what, state.last_error.block = b"impossible name 'hidden'", 77
    device.blocks[STATE_BLOCK] = bytes(state.encode(builder.superblock, 0))
    namespace = RamNamespace(builder.superblock.block_count, dict(device.blocks))
    made = await obscured(namespace, tmp_path / "out")
    assert b"hidden" not in bytes_of(made)
    assert await finding_names(made) == ["error-recorded"]


# --- the command ------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top, source, out = tmp_path / "top", tmp_path / "disk.img", tmp_path / "out"
    top.mkdir()
    (top / "report of the year").write_text("what nobody may read")
    (top / "link").symlink_to("the way to the report")
    words = ["-q", "--size", "16M", "-L", "ours-alone", "-d", str(top), str(source)]
    assert mkfs(words) == 0
    assert image(["--obscure", str(source), str(out)]) == 0
    assert "of metadata" in capsys.readouterr().out
    assert fsck(["-n", "-f", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    whole = out.read_bytes()
    assert len(whole) == 16 << 20
    for secret in (b"report", b"nobody", b"the way", b"ours-alone"):
        assert secret in source.read_bytes()
        assert secret not in whole


def test_a_tree_with_a_hole_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "disk.img", tmp_path / "out"
    assert mkfs(["-q", "--size", "16M", str(source)]) == 0
    with source.open("r+b") as file:
        superblock = Superblock.decode(block(file.fileno(), 16), 16)
        root = State.decode(block(file.fileno(), STATE_BLOCK), superblock).roots[0].block
        os.pwrite(file.fileno(), b"torn", root * BLOCK_BYTES + 100)
    assert image(["--obscure", str(source), str(out)]) == 1
    assert "a part of the tree cannot be read" in capsys.readouterr().err
    assert not out.exists()
    assert image([str(source), str(out)]) == 0


def block(descriptor: int, number: int) -> bytes:
    return os.pread(descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
