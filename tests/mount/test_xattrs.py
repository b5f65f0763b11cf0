"""Extended attributes and access control lists on a mount."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from pathlib import Path

import pytest

from tests.mount.conftest import NOBODY, as_user, run
from tests.mount.test_names import fails

pytestmark = pytest.mark.mount

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An attribute value from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 2**32 - 1
LIST = acl(
    (USER_OBJ, 6, NONE), (USER, 7, 1234), (GROUP_OBJ, 4, NONE), (MASK, 5, NONE), (OTHER, 0, NONE)
)


@pytest.fixture
def file(place: Path) -> Path:
    (place / "f").write_text("x")
    return place / "f"


@pytest.mark.parametrize("size", [0, 1, 512, 513, 4000, 4096, 65536])
def test_values_of_all_sizes(file: Path, size: int) -> None:
    value = bytes(number % 251 for number in range(size))
    os.setxattr(file, "user.a", value)
    assert os.getxattr(file, "user.a") == value
    os.setxattr(file, "user.a", b"short")
    assert os.getxattr(file, "user.a") == b"short"
    os.removexattr(file, "user.a")
    with fails(errno.ENODATA):
        os.getxattr(file, "user.a")
    with fails(errno.ENODATA):
        os.removexattr(file, "user.a")


def test_flags(file: Path) -> None:
    with fails(errno.ENODATA):
        os.setxattr(file, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(file, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"3"


def test_many_names(file: Path) -> None:
    names = {f"user.{number}" for number in range(500)} | {"user." + "n" * 250}
    for name in names:
        os.setxattr(file, name, name.encode())
    assert set(os.listxattr(file)) == names
    for name in names:
        assert os.getxattr(file, name) == name.encode()


def test_namespaces(file: Path) -> None:
    for name in ("user.a", "trusted.a", "security.a"):
        os.setxattr(file, name, b"v")
    assert set(os.listxattr(file)) == {"user.a", "trusted.a", "security.a"}
    file.chmod(0o644)
    seen = as_user(file.parent, lambda: os.listxattr("f"))
    assert set(seen) == {"user.a", "security.a"}
    with fails(errno.EOPNOTSUPP):
        os.setxattr(file, "system.other", b"v")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(file, "nonsense", b"v")
    with fails(errno.EOPNOTSUPP, errno.ENODATA):
        os.getxattr(file, "system.other")


def test_on_directories_and_symlinks(place: Path) -> None:
    os.setxattr(place, "user.d", b"directory")
    assert os.getxattr(place, "user.d") == b"directory"
    (place / "l").symlink_to("nowhere")
    os.setxattr(place / "l", "trusted.l", b"link", follow_symlinks=False)
    assert os.getxattr(place / "l", "trusted.l", follow_symlinks=False) == b"link"
    with fails(errno.EPERM):
        os.setxattr(place / "l", "user.l", b"link", follow_symlinks=False)


def test_access_list_and_mode_keep_in_step(file: Path) -> None:
    file.chmod(0o640)
    os.setxattr(file, ACCESS, LIST)
    assert os.getxattr(file, ACCESS) == LIST
    assert stat.S_IMODE(file.stat().st_mode) == 0o650  # the mask stands for the group
    file.chmod(0o600)
    assert os.getxattr(file, ACCESS) == acl(
        (USER_OBJ, 6, NONE),
        (USER, 7, 1234),
        (GROUP_OBJ, 4, NONE),
        (MASK, 0, NONE),
        (OTHER, 0, NONE),
    )
    os.removexattr(file, ACCESS)
    with fails(errno.ENODATA):
        os.getxattr(file, ACCESS)


def test_access_list_decides(file: Path) -> None:
    file.chmod(0o600)
    named = acl(
        (USER_OBJ, 6, NONE),
        (USER, 4, NOBODY),
        (GROUP_OBJ, 0, NONE),
        (MASK, 4, NONE),
        (OTHER, 0, NONE),
    )
    with fails(errno.EACCES):
        as_user(file.parent, lambda: os.open("f", os.O_RDONLY))
    os.setxattr(file, ACCESS, named)
    as_user(file.parent, lambda: os.close(os.open("f", os.O_RDONLY)))
    with fails(errno.EACCES):
        as_user(file.parent, lambda: os.open("f", os.O_WRONLY))


def test_default_list_is_inherited(place: Path) -> None:
    default = acl(
        (USER_OBJ, 7, NONE),
        (USER, 7, 1234),
        (GROUP_OBJ, 5, NONE),
        (MASK, 7, NONE),
        (OTHER, 0, NONE),
    )
    (place / "d").mkdir()
    os.setxattr(place / "d", DEFAULT, default)
    (place / "d" / "sub").mkdir(0o755)
    assert os.getxattr(place / "d" / "sub", DEFAULT) == default
    (place / "d" / "f").write_text("")
    entries = os.getxattr(place / "d" / "f", ACCESS)
    assert struct.pack("<HHI", USER, 7, 1234) in entries
    assert not mode_bits(place / "d" / "f") & 0o007


def mode_bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_setting_a_list_as_a_stranger_to_the_group_takes_set_group_id_away(file: Path) -> None:
    os.chown(file, NOBODY, 4242)
    file.chmod(0o2771)
    as_user(file.parent, lambda: os.setxattr("f", ACCESS, LIST))
    assert not mode_bits(file) & stat.S_ISGID


@pytest.mark.parametrize("bad", [b"abc", acl((USER_OBJ, 7, NONE)), LIST + b"x"])
def test_impossible_lists_are_refused(file: Path, bad: bytes) -> None:
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        os.setxattr(file, ACCESS, bad)


def test_removing_a_list_that_is_not_there_succeeds(file: Path) -> None:
    """As ext4 and xfs do: the mode is the list then."""
    os.removexattr(file, ACCESS)
    os.setxattr(file, ACCESS, b"")
    os.removexattr(file.parent, DEFAULT)


@pytest.mark.skipif(not shutil.which("setfacl"), reason="no setfacl (package acl)")
def test_setfacl(file: Path) -> None:
    run("setfacl", "-m", "u:1234:rw", file)
    assert "user:1234:rw-" in run("getfacl", "-cn", file).stdout
    run("setfacl", "-b", file)
    assert ACCESS not in os.listxattr(file)
