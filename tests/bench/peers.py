"""The filesystems that are compared: how each is made in an image, mounted and unmounted.

A peer is added by a subclass and its name in PEERS. What its mount differs in from ours stands in its
`note`, which is printed under the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.demo.programs import call
from tests.mount.conftest import Mount, ended, mkfs

MOUNT_BOUND_S = 30.0
UNMOUNT_BOUND_S = 300.0


class BenchError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


class Peer(ABC):
    """A filesystem in an image file. One mount at a time."""

    name: str
    commands: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    note: str = ""

    def missing(self) -> bool:
        """Whether a command of it is not installed."""
        return any(shutil.which(command) is None for command in self.commands)

    @abstractmethod
    def make(self, image: Path, size_bytes: int) -> None:
        """A fresh, empty filesystem in a new sparse image."""

    @abstractmethod
    def mount(self, image: Path, directory: Path) -> None:
        """Returns when the mount serves."""

    @abstractmethod
    def unmount(self, directory: Path) -> None:
        """Returns when all is in the image and its daemon has ended."""


class FuseDaemon(Peer):
    """A FUSE filesystem whose daemon stays in the foreground, as a child of this process."""

    child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def daemon(self, image: Path, directory: Path) -> list[str]:
        """The command that serves the mount until it is unmounted."""

    def mount(self, image: Path, directory: Path) -> None:
        self.child = subprocess.Popen(
            self.daemon(image, directory),
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + MOUNT_BOUND_S
        while not os.path.ismount(directory):
            if self.child.poll() is not None:
                raise BenchError(f"{self.name}: exit status {self.child.returncode} at the mount")
            if time.monotonic() > deadline:
                self.child.kill()
                raise BenchError(f"{self.name}: not mounted within {MOUNT_BOUND_S:g} s")
            time.sleep(0.01)

    def unmount(self, directory: Path) -> None:
        if os.path.ismount(directory):
            call("umount" if os.geteuid() == 0 else "fusermount3", directory)
        if self.child is not None:
            if not ended(self.child.pid, UNMOUNT_BOUND_S):
                self.child.kill()
                raise BenchError(f"{self.name}: the daemon lives on after the unmount")
            status = self.child.wait()
            self.child = None
            if status:
                raise BenchError(f"{self.name}: exit status {status} at the unmount")


class Nvmefs(Peer):
    name = "nvmefs"
    note = "embedded controller, default options: commits each 5 s and at fsync, with barriers"
    options = ""
    mounted: Mount | None = None

    def make(self, image: Path, size_bytes: int) -> None:
        mkfs(image, str(size_bytes))

    def mount(self, image: Path, directory: Path) -> None:
        log = image.with_name(f"{self.name}.log")
        self.mounted = Mount(image, directory, log, self.options)
        try:
            self.mounted.mount()
        except subprocess.CalledProcessError as error:
            raise BenchError(f"{self.name}: {error.stderr.strip()}") from error

    def unmount(self, directory: Path) -> None:
        if self.mounted is not None:
            self.mounted.unmount()
            self.mounted = None


class NvmefsPython(Nvmefs):
    """Ours with the other front end: what the C threads gain, and what passing requests on costs."""

    name = "nvmefs-py"
    options = "frontend=python"
    note = "the same without the C front end: pyfuse3 reads /dev/fuse itself"


class Fuse2fs(FuseDaemon):
    name = "fuse2fs"
    commands = ("fuse2fs", "mke2fs")
    packages = ("fuse2fs", "e2fsprogs")
    note = (
        "ext4 with its defaults but without lazy initialisation; fuse2fs' default mount options "
        "(kernel_cache, big_writes, attr_timeout=0, default_permissions, allow_other as root). "
        "It writes no journal: a crash needs e2fsck"
    )

    def make(self, image: Path, size_bytes: int) -> None:
        with open(image, "xb") as file:
            file.truncate(size_bytes)
        eager = "lazy_itable_init=0,lazy_journal_init=0"
        call("mke2fs", "-q", "-F", "-t", "ext4", "-E", eager, image)

    def daemon(self, image: Path, directory: Path) -> list[str]:
        return ["fuse2fs", "-f", str(image), str(directory)]


PEERS: tuple[type[Peer], ...] = (Nvmefs, NvmefsPython, Fuse2fs)


def install(peers: list[Peer]) -> None:
    """What the peers need and is not there, as root; otherwise BenchError names the command."""
    packages = sorted({package for peer in peers if peer.missing() for package in peer.packages})
    if not packages:
        return
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BenchError(f"not installed; as root: apt-get install {' '.join(packages)}")
    print(f"installing: {' '.join(packages)}", file=sys.stderr, flush=True)
    call("apt-get", "update", "-q")
    call("env", "DEBIAN_FRONTEND=noninteractive", *command)
    still = [peer.name for peer in peers if peer.missing()]
    if still:
        raise BenchError(f"still missing after apt-get install: {', '.join(still)}")
