"""mount(8), umount(8) and fstab with the helpers installed, in a mount namespace with a /sbin of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmefs.helpers import commands
from tests.mount.conftest import ROOT, Mount, fsck, mkfs, python_module

pytestmark = pytest.mark.mount

BOUND_S = 120
PRELUDE = """
set -e
mkdir -p /run/nvmefs own mnt other
mount -t tmpfs tmpfs /run/mount
mount -t tmpfs tmpfs /run/nvmefs
mount -t tmpfs tmpfs own
mkdir own/upper own/work
mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=own/upper,workdir=own/work /usr/sbin
"""


def sbin_can_be_ours(directory: Path) -> bool:
    if os.geteuid() or os.path.realpath("/sbin") != "/usr/sbin" or not Path("/run/mount").is_dir():
        return False
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", PRELUDE],
        cwd=directory,
        capture_output=True,
        timeout=BOUND_S,
        check=False,
    )
    return tried.returncode == 0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an image in it, disk.img, and the directories mnt and other."""
    if not sbin_can_be_ours(tmp_path):
        pytest.skip("needs root, and overlayfs on /usr/sbin")
    mkfs(tmp_path / "disk.img", "256M")
    return tmp_path


def script(place: Path, text: str) -> list[str]:
    """What a shell script says, with our helpers in its /sbin; it must succeed, and leave no daemon."""
    install = f"{commands()}/nvmefs install-helpers >/dev/null\n"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", PRELUDE + install + text],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not list(Path("/sbin").glob("*mount.nvmefs"))
    assert fsck(place / "disk.img").returncode == 0
    return done.stdout.splitlines()


def test_umount_returns_when_the_daemon_has_ended(place: Path) -> None:
    """Not a moment later, and so the image is free at once."""
    assert script(
        place,
        """
        mount -t nvmefs disk.img mnt
        dd if=/dev/urandom of=mnt/f bs=1M count=20 2>/dev/null
        daemon=$(sed 's/[^0-9]*\\([0-9]*\\).*/\\1/' /run/nvmefs/mounts/*)
        kill -0 $daemon
        umount mnt
        case "$(sed -n 's/^State:.//p' /proc/$daemon/status 2>/dev/null)" in ''|Z*) ;; *) echo alive; esac
        fsck.nvmefs -n disk.img
        mount -t fuse.nvmefs "$PWD/disk.img" mnt
        stat -c %s mnt/f
        umount -R mnt && fsck.nvmefs -n disk.img
        cat /run/mount/utab; ls /run/nvmefs/mounts
        """,
    ) == [
        "disk.img: clean, 2 inodes, 1 names",
        str(20 << 20),
        "disk.img: clean, 2 inodes, 1 names",
    ]


def test_fstab(place: Path) -> None:
    said = script(
        place,
        """
        echo "$PWD/disk.img $PWD/mnt nvmefs noatime,nofail,_netdev,x-systemd.automount 0 2" > fstab
        mount -T fstab "$PWD/mnt"
        findmnt -no SOURCE,FSTYPE,OPTIONS mnt
        umount mnt
        """,
    )
    source, kind, options = said[0].split()
    assert (source, kind) == (str(place / "disk.img"), "fuse.nvmefs")
    assert "noatime" in options


def test_busy(place: Path) -> None:
    """Exit status 32, and who it is; nothing has changed."""
    said = script(
        place,
        """
        mount -t nvmefs disk.img mnt
        echo kept > mnt/f
        sleep 1000 < mnt/f & holder=$!
        umount mnt 2>&1 && echo unmounted || echo status $?
        cat mnt/f
        kill $holder; wait $holder || true
        umount -v mnt
        """,
    )
    assert "target is busy; in use by sleep (pid " in said[0]
    assert said[1:] == ["status 32", "kept", f"{place}/mnt: unmounted"]


@pytest.mark.slow
def test_lazily(place: Path) -> None:
    """It does not wait for who still uses it; the daemon ends when that does."""
    said = script(
        place,
        """
        mount -t nvmefs disk.img mnt
        echo kept > mnt/f
        daemon=$(sed 's/[^0-9]*\\([0-9]*\\).*/\\1/' /run/nvmefs/mounts/*)
        sleep 1000 < mnt/f & holder=$!
        umount -l mnt
        ls mnt; kill -0 $daemon && echo alive
        kill $holder; wait $holder || true
        tail --pid=$daemon -f /dev/null
        """,
    )
    assert said == ["alive"]


@pytest.mark.slow
def test_one_of_two_mountpoints(place: Path) -> None:
    """The daemon goes on for the other: nobody waits for it."""
    said = script(
        place,
        """
        mount -t nvmefs disk.img mnt
        mount --bind mnt other
        umount other
        echo still > mnt/f; cat mnt/f
        mount --bind mnt other
        umount mnt
        cat other/f
        umount other
        fsck.nvmefs -n disk.img >/dev/null
        """,
    )
    assert said == ["still", "still"]


@pytest.mark.slow
def test_what_mount_says_when_it_fails(place: Path) -> None:
    said = script(
        place,
        """
        mount -t nvmefs absent.img mnt 2>&1 || echo status $?
        mount -t nvmefs -o nonsense disk.img mnt >/dev/null 2>&1 || echo status $?
        mount -t nvmefs -s -o nonsense disk.img mnt && umount mnt
        mount -f -t nvmefs disk.img mnt && ls mnt
        /sbin/umount.nvmefs mnt 2>&1 || echo status $?
        """,
    )
    assert "absent.img: no such image" in said[0]
    assert said[1:] == [
        "status 32",
        "status 1",
        f"umount.nvmefs: {place}/mnt: not mounted",
        "status 32",
    ]


def test_remount(place: Path) -> None:
    said = script(
        place,
        """
        mount -t nvmefs -o commit=600,nosuid disk.img mnt
        echo kept > mnt/f
        mount -o remount,ro mnt
        touch mnt/g 2>/dev/null || echo read-only
        findmnt -no VFS-OPTIONS mnt
        mount -o remount,rw,noexec mnt
        touch mnt/g && echo writable
        findmnt -no VFS-OPTIONS mnt
        mount -o remount,commit=5 mnt 2>&1 || echo status $?
        exec 3>mnt/held
        mount -o remount,ro mnt 2>&1 || echo status $?
        exec 3>&-
        mount -i -o remount,bind,nosymfollow mnt
        findmnt -no VFS-OPTIONS mnt
        umount mnt
        mount -t nvmefs -o ro disk.img mnt
        mount -o remount,rw mnt 2>&1 || echo status $?
        umount mnt
        """,
    )
    assert said == [
        "read-only",
        "ro,nosuid,relatime",
        "writable",
        "rw,nosuid,noexec,relatime",
        (
            f"nvmefs: {place}/mnt: commit_s is 600.0 and cannot change while mounted; unmount, "
            "then mount with the new options"
        ),
        "status 32",
        f"nvmefs: {place}/mnt: cannot be remounted: Device or resource busy",
        "status 32",
        "rw,nosuid,noexec,relatime,nosymfollow",
        f"nvmefs: {place}/mnt: its drive was opened read-only; to write, unmount, then mount with rw",
        "status 32",
    ]


@pytest.mark.slow
def test_in_another_mount_namespace(place: Path) -> None:
    said = script(
        place,
        """
        unshare -m sleep 1000 & other=$!
        while [ "$(readlink /proc/$other/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.1; done
        mount -N $other -t nvmefs "$PWD/disk.img" "$PWD/mnt"
        grep -c fuse.nvmefs /proc/$other/mountinfo
        grep -c fuse.nvmefs /proc/self/mountinfo || true
        umount -N $other "$PWD/mnt"
        grep -c fuse.nvmefs /proc/$other/mountinfo || true
        fsck.nvmefs -n disk.img >/dev/null
        kill $other
        """,
    )
    assert said == ["1", "0", "0"]


def test_systemd_is_told(new_mount: Callable[..., Mount], tmp_path: Path) -> None:
    """READY=1 comes when the mount serves, and not before."""
    mount = new_mount(size="64M", mount=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(BOUND_S)
        with subprocess.Popen(
            python_module("nvmefs.cli", "--systemd", mount.image, mount.path),
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
            },
            stderr=subprocess.DEVNULL,
        ) as process:
            assert notify.recv(100) == b"READY=1"
            assert mount.mounted
            (mount.path / "f").write_text("served")
            process.terminate()
            assert process.wait(BOUND_S) == 0
    assert not mount.mounted
