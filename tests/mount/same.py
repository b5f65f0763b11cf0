"""The same operations on two filesystems, by several users, and every difference between them.

    python -m tests.mount.same DIR OTHER_DIR SEED STEPS        as root; 1: something differs, and is printed

After each operation the results (errno included), then everything that stat, listxattr and the files hold,
and then which times have changed, must agree. The other filesystem is the oracle: ext4 or xfs of the host.

What is left out, because there a filesystem may choose or FUSE cannot do better: sizes that ext4 does not
reach, attributes that do not fit into its inodes.
"""

from __future__ import annotations

import ctypes
import os
import random
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USERS = ((0, 0, [0]), (1000, 1000, [1000, 3000]), (1001, 1001, [1001, 3000]), (1002, 1002, [1002]))
NAMES = ("a", "b", "c", "d", "e", "x" * 255, "y" * 256, ".", "..", "")
WEIGHTS = (20, 20, 20, 15, 10, 2, 1, 2, 2, 1)
MODES = (
    0o777,
    0o755,
    0o700,
    0o644,
    0o1777,
    0o2775,
    0o4755,
    0o2755,
    0o6777,
    0,
    0o111,
    0o555,
    0o2767,
)
SIZES = (0, 1, 100, 4096, 5000, 70_000, -1, 1 << 43)
ACCESS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
OPENING = (
    0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW,
    os.O_CREAT | os.O_TRUNC, os.O_TMPFILE, os.O_PATH,
)  # fmt: skip
TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, 0)
ATTRIBUTES = ("user.a", "user.b", "trusted.c", "security.d", "user." + "n" * 251, "bad")
LISTS = ("system.posix_acl_access", "system.posix_acl_default")
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NOBODY = 2**32 - 1
_libc = ctypes.CDLL(None, use_errno=True)

State = dict[str, tuple[Any, ...]]
Times = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Step:
    """One operation with all that it may need. `seed` decides what is done with an open file."""

    operation: str
    user: int
    umask: int
    path: str
    other: str
    mode: int
    owner: int
    group: int
    size: int
    offset: int
    data: bytes
    flags: int
    kind: int
    name: str
    value: bytes
    creation: int
    exchange: int
    times: tuple[int, int, int, int] | None
    follow: bool
    seed: int


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "")


def _rename(step: Step) -> None:
    old, new = os.fsencode(step.path), os.fsencode(step.other)
    _checked(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, step.exchange))


def _utime(step: Step) -> None:
    if step.times is None:
        os.utime(step.path, follow_symlinks=step.follow)
        return
    flags = 0 if step.follow else AT_SYMLINK_NOFOLLOW
    times = struct.pack("qqqq", *step.times)
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(step.path), times, flags))


def _open(step: Step) -> list[Any]:
    descriptor = os.open(step.path, step.flags, step.mode)
    chance = random.Random(step.seed)
    actions: list[tuple[float, Callable[[], Any]]] = [
        (0.7, lambda: os.pwrite(descriptor, step.data, step.offset)),
        (0.5, lambda: os.fsync(descriptor)),
        (0.3, lambda: os.ftruncate(descriptor, step.size)),
        (0.2, lambda: os.fchmod(descriptor, step.mode)),
        (0.2, lambda: os.fchown(descriptor, step.owner, step.group)),
        (0.2, lambda: os.posix_fallocate(descriptor, step.offset, step.size % 100_000 + 1)),
    ]
    try:
        return [_result(action) for share, action in actions if chance.random() < share]
    finally:
        os.close(descriptor)


def _read(step: Step) -> bytes:
    descriptor = os.open(step.path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 200_000)
    finally:
        os.close(descriptor)


def _remove_attribute(step: Step) -> None:
    """Not of access control lists: where there is none the kernel changes a FUSE file's ctime all the same."""
    name = ATTRIBUTES[0] if step.name in LISTS else step.name
    os.removexattr(step.path, name, follow_symlinks=step.follow)


OPERATIONS: dict[str, tuple[int, Callable[[Step], Any]]] = {
    "mkdir": (5, lambda s: os.mkdir(s.path, s.mode)),
    "rmdir": (1, lambda s: os.rmdir(s.path)),
    "unlink": (2, lambda s: os.unlink(s.path)),
    "link": (2, lambda s: os.link(s.path, s.other, follow_symlinks=s.follow)),
    "symlink": (2, lambda s: os.symlink(s.other, s.path)),
    "rename": (4, _rename),
    "chmod": (3, lambda s: os.chmod(s.path, s.mode)),
    "chown": (3, lambda s: os.chown(s.path, s.owner, s.group, follow_symlinks=s.follow)),
    "truncate": (1, lambda s: os.truncate(s.path, s.size)),
    "open": (7, _open),
    "mknod": (1, lambda s: os.mknod(s.path, s.kind | s.mode, os.makedev(1, 3))),
    "utime": (2, _utime),
    "setxattr": (
        4,
        lambda s: os.setxattr(s.path, s.name, s.value, s.creation, follow_symlinks=s.follow),
    ),
    "removexattr": (1, _remove_attribute),
    "access": (1, lambda s: [os.access(s.path, how) for how in range(8)]),
    "listdir": (1, lambda s: sorted(os.listdir(s.path))),
    "read": (1, _read),
}


class Steps:
    """A sequence of steps from a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def _path(self) -> str:
        parts = self.chance.choices(NAMES, WEIGHTS, k=self.chance.choice((1, 1, 2, 2, 2, 3)))
        if parts[0] in ("..", ""):  # would lead out of the tree
            parts[0] = "a"
        if parts.count("..") * 2 > len(parts) - parts.count("."):
            parts = [part for part in parts if part != ".."]
        return "a/" * 2100 if self.chance.random() < 0.01 else "/".join(parts)

    def _list(self) -> bytes:
        """An access control list, mostly a sound one (acl(5))."""
        bits = [self.chance.randrange(8) for _ in range(6)]
        entries = [(1, bits[0], NOBODY)]
        if self.chance.random() < 0.6:
            entries.append((2, bits[1], self.chance.choice((1000, 1001))))
        entries.append((4, bits[2], NOBODY))
        if self.chance.random() < 0.4:
            entries.append((8, bits[3], 3000))
        if self.chance.random() < (0.9 if len(entries) > 2 else 0.2):
            entries.append((16, bits[4], NOBODY))
        entries.append((32, bits[5], NOBODY))
        packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
        return struct.pack("<I", 2) + packed if self.chance.random() < 0.9 else b"junk"

    def next(self) -> Step:
        pick = self.chance.choice
        is_list = self.chance.random() < 0.25
        values = (b"", b"v" * 10, b"v" * 300)
        times = (
            None,
            (5, 7, 9, 11),
            (0, UTIME_OMIT, 5, 7),
            (5, 7, 0, UTIME_NOW),
            (0, UTIME_OMIT) * 2,
        )
        weights = [weight for weight, _ in OPERATIONS.values()]
        return Step(
            operation=self.chance.choices(list(OPERATIONS), weights)[0],
            user=pick((0, 0, 1, 1, 2, 3)),
            umask=pick((0, 0o22, 0o77, 0o27)),
            path=self._path(),
            other=self._path(),
            mode=pick((*MODES, self.chance.randrange(0o10000))),
            owner=pick((-1, 0, 1000, 1001, 1002)),
            group=pick((-1, 0, 1000, 1001, 3000)),
            size=pick(SIZES),
            offset=pick((0, 1, 4095, 4096, 10_000, 1 << 20)),
            data=bytes([self.chance.randrange(256)]) * pick((1, 10, 4096, 9000)),
            flags=pick(ACCESS) | pick(OPENING),
            kind=pick(TYPES),
            name=pick(LISTS if is_list else ATTRIBUTES),
            value=self._list() if is_list else pick(values),
            creation=pick((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
            exchange=pick((0, 0, 0, 1, 2, 3, 4, 5)),
            times=pick(times),
            follow=self.chance.random() < 0.5,
            seed=self.chance.randrange(1 << 32),
        )


def _result(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except OSError as error:
        return f"errno {error.errno}"


def perform(base: Path, step: Step) -> Any:
    """The step in a directory, as its user."""
    uid, gid, groups = USERS[step.user]
    os.chdir(base)
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    os.umask(step.umask)
    try:
        return _result(lambda: OPERATIONS[step.operation][1](step))
    finally:
        os.seteuid(0)
        os.setegid(0)


def look(base: Path) -> tuple[State, Times]:
    """Everything below a directory, by path; and (mtime, ctime) of each."""
    state: State = {}
    times: Times = {}
    todo = [str(base)]
    while todo:
        path = todo.pop()
        status = os.lstat(path)
        is_dir = stat.S_ISDIR(status.st_mode)
        key = path[len(str(base)) :]
        times[key] = status.st_mtime_ns, status.st_ctime_ns
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name != "security.selinux"
        }
        content: Any = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode) and status.st_size < 200_000:
            content = hash(Path(path).read_bytes())
        elif is_dir:
            content = sorted(os.listdir(path))
            todo += [f"{path}/{name}" for name in content]
        size = 0 if is_dir else status.st_size
        state[key] = (
            oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size,
            0 if is_dir else status.st_rdev, attributes, content,
        )  # fmt: skip
    return state, times


def _changed(before: Times, after: Times) -> dict[str, list[bool]]:
    """Of each path: whether mtime and ctime are others than before."""
    none = (-1, -1)
    return {
        key: [new != old for new, old in zip(times, before.get(key, none), strict=True)]
        for key, times in after.items()
    }


def differences(places: tuple[Path, Path], seed: int, count: int) -> str:
    """The first step after which the two differ, in words; "" if none does."""
    steps = Steps(seed)
    before: list[Times] = [look(base)[1] for base in places]
    for number in range(count):
        step = steps.next()
        results = [perform(base, step) for base in places]
        looks = [look(base) for base in places]
        changed = [_changed(old, times) for old, (_, times) in zip(before, looks, strict=True)]
        before = [times for _, times in looks]
        views: dict[str, list[dict[str, Any]]] = {"state": [dict(state) for state, _ in looks]}
        if step.operation != "setxattr":  # ext4 takes the same value once more for no change
            views["times"] = [dict(times) for times in changed]
        for what, (ours, theirs) in views.items():
            keys = [key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)]
            if keys:
                told = {key: (ours.get(key), theirs.get(key)) for key in keys}
                return f"seed {seed}, step {number}, {what}: {told}\n{step}"
        if results[0] != results[1]:
            return f"seed {seed}, step {number}: {results[0]!r}, not {results[1]!r}\n{step}"
    return ""


def main(argv: list[str]) -> int:
    """Exit status 1 if the two differ."""
    places = Path(argv[0]), Path(argv[1])
    for base in places:
        base.mkdir()
        base.chmod(0o777)
    found = differences(places, int(argv[2]), int(argv[3]))
    print(found, end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
