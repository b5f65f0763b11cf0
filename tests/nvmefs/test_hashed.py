"""Names whose hashes collide: lists that overflow, searches that go on, cookies that stay."""

from __future__ import annotations

import random

import pytest

from nvmefs import directories, xattrs
from nvmefs.hashed import next_hash
from nvmefs.layout import OFFSET_MASK, ROOT_INODE
from tests.support import checker
from tests.support.checker import check
from tests.support.images import fresh, mounted
from tests.support.model import FILE


@pytest.fixture(params=[12345, OFFSET_MASK, OFFSET_MASK - 1])
def one_hash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """All names have this hash; the last of all is followed by the first."""
    value: int = request.param
    for module in (directories, xattrs, checker):
        monkeypatch.setattr(module, "name_hash", lambda seed, name: value)
    for module in (directories, checker):
        monkeypatch.setattr(module, "parent_hash", lambda seed, parent, name: value)
    return value


def test_the_hash_after_the_last_is_one() -> None:
    assert next_hash(OFFSET_MASK) == 1
    assert next_hash(7) == 8


@pytest.mark.usefixtures("one_hash")
async def test_a_directory_of_collisions() -> None:
    rng = random.Random(1)
    namespace = await fresh()
    present: dict[bytes, int] = {}
    async with mounted(namespace) as filesystem:
        for step in range(1200):
            name = b"%d" % rng.randrange(300) + b"x" * rng.choice([0, 30, 200])
            if name in present and rng.random() < 0.5:
                await filesystem.unlink(ROOT_INODE, name)
                await filesystem.reap(present.pop(name))
            elif name not in present:
                inode = await filesystem.create(ROOT_INODE, name, FILE, 0, 0)
                present[name] = inode.number
            if step % 200 == 0:
                for name, number in present.items():
                    found = await filesystem.lookup(ROOT_INODE, name)
                    assert found is not None
                    assert found.number == number
        assert await filesystem.lookup(ROOT_INODE, b"absent") is None
        entries = await filesystem.readdir(ROOT_INODE, 0, 10000)
        cookies = [cookie for cookie, _ in entries]
        assert cookies == sorted(set(cookies))
        assert {entry.name: entry.inode for _, entry in entries} == present
    assert check(namespace.blocks) == []
    async with mounted(namespace) as filesystem:
        for name, number in present.items():
            await filesystem.unlink(ROOT_INODE, name)
            await filesystem.reap(number)
        assert await filesystem.readdir(ROOT_INODE, 0, 10) == []
    assert check(namespace.blocks) == []


@pytest.mark.usefixtures("one_hash")
async def test_cookies_stay_while_names_come_and_go() -> None:
    """Whoever reads the directory in pieces sees each name that is there all the time exactly once."""
    rng = random.Random(2)
    async with mounted(await fresh()) as filesystem:
        for index in range(200):
            await filesystem.create(ROOT_INODE, b"stay%d" % index, FILE, 0, 0)
            await filesystem.create(ROOT_INODE, b"go%d" % index, FILE, 0, 0)
        gone = list(range(200))
        seen: list[bytes] = []
        after = 2
        while True:
            entries = await filesystem.readdir(ROOT_INODE, after, 7)
            if not entries:
                break
            seen += [entry.name for _, entry in entries]
            after = entries[-1][0]
            for _ in range(3):
                if gone:
                    index = gone.pop(rng.randrange(len(gone)))
                    await filesystem.unlink(ROOT_INODE, b"go%d" % index)
                    await filesystem.create(ROOT_INODE, b"new%d" % index, FILE, 0, 0)
        stayed = [name for name in seen if name.startswith(b"stay")]
        assert sorted(stayed) == sorted(b"stay%d" % index for index in range(200))
        assert len(seen) == len(set(seen))


@pytest.mark.usefixtures("one_hash")
async def test_renames_and_links_among_collisions() -> None:
    rng = random.Random(3)
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        first = await filesystem.create(ROOT_INODE, b"first", FILE, 0, 0)
        present = {b"first": first.number}
        for index in range(60):
            name = b"%d" % index + b"y" * 150
            await filesystem.link(first.number, ROOT_INODE, name)
            present[name] = first.number
        for index in range(200):
            name = rng.choice(list(present))
            new = b"%d" % rng.randrange(100) + b"z" * 100
            await filesystem.rename(ROOT_INODE, name, ROOT_INODE, new)
            if new not in present:
                present[new] = present.pop(name)
            if index % 10 == 0:
                other = rng.choice(list(present))
                await filesystem.rename(ROOT_INODE, new, ROOT_INODE, other, 2)
        entries = await filesystem.readdir(ROOT_INODE, 0, 1000)
        assert {entry.name for _, entry in entries} == set(present)
        assert first.nlink == len(present)
    assert check(namespace.blocks) == []


@pytest.mark.usefixtures("one_hash")
async def test_attributes_of_one_hash() -> None:
    rng = random.Random(4)
    namespace = await fresh()
    async with mounted(namespace) as filesystem:
        inode = await filesystem.create(ROOT_INODE, b"file", FILE, 0, 0)
        present: dict[bytes, bytes] = {}
        for step in range(400):
            name = b"user.%d" % rng.randrange(40)
            if name in present and rng.random() < 0.4:
                await filesystem.removexattr(inode.number, name)
                del present[name]
            else:
                value = bytes([step % 256]) * rng.choice([0, 10, 500, 512, 513, 2000])
                await filesystem.setxattr(inode.number, name, value)
                present[name] = value
        assert sorted(await filesystem.listxattr(inode.number)) == sorted(present)
        for name, value in present.items():
            assert await filesystem.getxattr(inode.number, name) == value
        await filesystem.unlink(ROOT_INODE, b"file")
        await filesystem.reap(inode.number)
    assert check(namespace.blocks) == []
