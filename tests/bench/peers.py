"""The filesystems that are compared: how each is made in an image, mounted and unmounted.

A peer is added by a subclass and its name in PEERS. What its mount differs in from ours stands in its
`note`, which is printed under the table. The null filesystems store nothing: they are what FUSE itself
costs in C and in Python.

    peer.make(image, size_bytes); peer.mount(image, directory)
    ...                                       peer.pids: the daemon, for CPU time and pinning
    peer.unmount(directory); peer.remove(image)
    peer.abandon(directory)                   from any state; nothing is left mounted or running
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from tests.bench.compiled import build_null
from tests.conftest import mounts_below
from tests.demo.programs import DemoError, call
from tests.mount.conftest import ended

ROOT = Path(__file__).resolve().parents[2]
BUSY_BOUND_S = 5.0
MOUNT_BOUND_S = 30.0
UNMOUNT_BOUND_S = 120.0
MNT_FORCE, MNT_DETACH = 1, 2
EAGER = "lazy_itable_init=0,lazy_journal_init=0"


class BenchError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


class Peer(ABC):
    """A filesystem in an image file. One mount at a time."""

    name: str
    kind: str
    """ours, fuse (a C FUSE filesystem), kernel, or null."""
    commands: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    note: str = ""

    def missing(self) -> bool:
        """Whether a command of it is not installed."""
        return any(shutil.which(command) is None for command in self.commands)

    @property
    def pids(self) -> list[int]:
        """The processes that serve the mount."""
        return []

    @abstractmethod
    def make(self, image: Path, size_bytes: int) -> None:
        """A fresh, empty filesystem in a new sparse image."""

    @abstractmethod
    def mount(
        self, image: Path, directory: Path, options: str = "", preload: Mapping[str, str] = {}
    ) -> None:
        """Returns when it is mounted. `options` are added; `preload` joins the daemon's environment."""

    @abstractmethod
    def unmount(self, directory: Path) -> None:
        """Returns when all is in the image and its daemon has ended."""

    def remove(self, image: Path) -> None:
        image.unlink(missing_ok=True)

    def kill(self) -> None:
        """Whoever waits for an answer of the daemon gets an error. From any thread, at any time."""
        return

    def abandon(self, directory: Path) -> None:
        """End it the hard way."""
        self.kill()
        for mountpoint in mounts_below(directory):
            subprocess.run(["umount", "-l", mountpoint], check=False, stderr=subprocess.DEVNULL)


def unmount(directory: Path) -> None:
    """umount(8), again while the mount is busy: who looks at all processes' files holds them for a moment."""
    end = time.monotonic() + BUSY_BOUND_S
    while True:
        try:
            call("umount", directory)
            return
        except BenchError as error:
            if "busy" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.01)


class FuseDaemon(Peer):
    """A FUSE filesystem whose daemon stays in the foreground, as a child of this process."""

    kind = "fuse"
    options = ""
    child: subprocess.Popen[bytes] | None = None
    directory = Path()

    @abstractmethod
    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        """The command that serves the mount until it is unmounted."""

    @property
    def pids(self) -> list[int]:
        return [self.child.pid] if self.child else []

    def mount(
        self, image: Path, directory: Path, options: str = "", preload: Mapping[str, str] = {}
    ) -> None:
        self.directory = directory
        listed = ",".join(word for word in (self.options, options) if word)
        with open(image.with_suffix(".out"), "wb") as output:
            self.child = subprocess.Popen(
                self.daemon(image, directory, listed),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(ROOT), **preload},
            )
        deadline = time.monotonic() + MOUNT_BOUND_S
        while not mounts_below(directory):
            if self.child.poll() is not None:
                raise BenchError(f"{self.name}: {self._last_words(image)}")
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}: not mounted within {MOUNT_BOUND_S:g} s")
            time.sleep(0.01)
        os.statvfs(directory)  # answered, so it serves

    def _last_words(self, image: Path) -> str:
        assert self.child is not None
        lines = image.with_suffix(".out").read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "says nothing"
        return f"exit status {self.child.returncode}: {said}"

    def unmount(self, directory: Path) -> None:
        if mounts_below(directory):
            unmount(directory)
        if self.child is not None:
            if not ended(self.child.pid, UNMOUNT_BOUND_S):
                raise BenchError(f"{self.name}: the daemon lives on after the unmount")
            status = self.child.wait()
            self.child = None
            if status:
                raise BenchError(f"{self.name}: exit status {status} at the unmount")

    def kill(self) -> None:
        """The connection is aborted as well: a thread of the daemon that waits for its own mount outlives
        SIGKILL, and with it everybody who waits for the daemon."""
        if (child := self.child) is not None:
            child.kill()
            detach_by_force(self.directory)

    def abandon(self, directory: Path) -> None:
        super().abandon(directory)
        if self.child is not None:
            self.child.wait()
            self.child = None


class Nvmefs(FuseDaemon):
    name = "nvmefs"
    kind = "ours"
    options = "frontend=c"
    note = "embedded controller, frontend=c: commits each 5 s and at fsync, with barriers"

    def make(self, image: Path, size_bytes: int) -> None:
        call(sys.executable, "-m", "mkfs.mkfs", "-q", "--size", str(size_bytes), image, cwd=ROOT)

    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        words = [str(image), str(directory), "-f", "-o", options]
        return [sys.executable, "-m", "nvmefs.cli", *words]


class NvmefsUring(Nvmefs):
    name = "nvmefs-uring"
    options = "frontend=uring"
    note = "the same by FUSE over io_uring"


class NvmefsPython(Nvmefs):
    """Ours with the other front end: what the C threads gain, and what passing requests on costs."""

    name = "nvmefs-python"
    options = "frontend=python"
    note = "the same without the C front end: pyfuse3 reads /dev/fuse itself"


class Ext4Image(Peer):
    """What fuse2fs and the kernel's ext4 have in common: the format."""

    def make(self, image: Path, size_bytes: int) -> None:
        sparse(image, size_bytes)
        call("mke2fs", "-q", "-F", "-t", "ext4", "-E", EAGER, image)


class Fuse2fs(Ext4Image, FuseDaemon):
    name = "fuse2fs"
    commands = ("fuse2fs", "mke2fs")
    packages = ("fuse2fs", "e2fsprogs")
    options = "allow_other,default_permissions"
    note = (
        "ext4 with its defaults but without lazy initialisation; allow_other,default_permissions; "
        "it writes no journal: a crash needs e2fsck"
    )

    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        return ["fuse2fs", "-f", "-o", options, str(image), str(directory)]


class Ntfs3g(FuseDaemon):
    name = "ntfs-3g"
    commands = ("ntfs-3g", "mkntfs")
    packages = ("ntfs-3g",)
    options = "no_detach,permissions,big_writes"
    note = "permissions,big_writes; it writes no journal"

    def make(self, image: Path, size_bytes: int) -> None:
        sparse(image, size_bytes)
        call("mkntfs", "-F", "-Q", "-q", image)

    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        return ["ntfs-3g", "-o", options, str(image), str(directory)]


class Bindfs(FuseDaemon):
    name = "bindfs"
    commands = ("bindfs",)
    packages = ("bindfs",)
    note = "passes everything to a directory of the host's filesystem: O_DIRECT to its page cache"

    def make(self, image: Path, size_bytes: int) -> None:
        image.mkdir()

    def remove(self, image: Path) -> None:
        if image.is_dir():
            shutil.rmtree(image)

    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        added = ["-o", options] if options else []
        return ["bindfs", "-f", *added, str(image), str(directory)]


class KernelExt4(Ext4Image):
    name = "ext4"
    kind = "kernel"
    commands = ("mke2fs", "losetup")
    packages = ("e2fsprogs", "mount")
    note = "the kernel's, on a loop device (buffered) over the same kind of image; no daemon"
    loop = ""

    def mount(
        self, image: Path, directory: Path, options: str = "", preload: Mapping[str, str] = {}
    ) -> None:
        self.loop = call("losetup", "--find", "--show", image)[1].strip()
        words = ["-o", options] if options else []
        call("mount", "-t", "ext4", *words, self.loop, directory)

    def unmount(self, directory: Path) -> None:
        if mounts_below(directory):
            unmount(directory)
        self._detach()

    def abandon(self, directory: Path) -> None:
        super().abandon(directory)
        self._detach()

    def _detach(self) -> None:
        if self.loop:
            call("losetup", "--detach", self.loop)
            self.loop = ""


class Null(FuseDaemon):
    """A filesystem without a store."""

    kind = "null"

    def make(self, image: Path, size_bytes: int) -> None:
        image.touch()


class NullC(Null):
    name = "null-c"
    commands = ("cc", "pkg-config")
    packages = ("gcc", "pkg-config", "libfuse3-dev")
    note = "libfuse's low-level API and its threads: reads give zeroes, writes are forgotten"

    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        return [str(build_null()), "-f", "-o", "allow_other", str(directory)]


class NullPython(Null):
    name = "null-python"
    note = "pyfuse3: names in a dict, nothing else"

    def daemon(self, image: Path, directory: Path, options: str) -> list[str]:
        added = ["-o", options] if options else []
        return [sys.executable, "-m", "tests.bench.null_pyfuse3", str(directory), *added]


PEERS: tuple[type[Peer], ...] = (
    Nvmefs, NvmefsUring, NvmefsPython, Fuse2fs, Ntfs3g, Bindfs, KernelExt4, NullC, NullPython,
)  # fmt: skip


def detach_by_force(mountpoint: Path) -> None:
    """umount2(2) itself, for umount(8) may look at the mount first, and wait. No mount there is no error."""
    ctypes.CDLL(None).umount2(os.fsencode(mountpoint), MNT_FORCE | MNT_DETACH)


def sparse(image: Path, size_bytes: int) -> None:
    with open(image, "xb") as file:
        file.truncate(size_bytes)


def available(peers: list[Peer], work: Path) -> tuple[list[Peer], dict[str, str]]:
    """Those that can be mounted here, after installing what is missing; of the others the reason."""
    reasons: dict[str, str] = {}
    packages = sorted({package for peer in peers if peer.missing() for package in peer.packages})
    if packages:
        install(packages)
    for peer in peers:
        if peer.missing():
            reasons[peer.name] = f"not installed (apt-get install {' '.join(peer.packages)})"
        elif why := why_not_mounted(peer, work):
            reasons[peer.name] = why
    return [peer for peer in peers if peer.name not in reasons], reasons


def install(packages: list[str]) -> None:
    """By apt-get where there is one; what stays missing is left out of the run."""
    if shutil.which("apt-get") is None:
        return
    print(f"installing: {' '.join(packages)}", file=sys.stderr, flush=True)
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
    try:
        call("apt-get", "update", "-q")
        call("env", "DEBIAN_FRONTEND=noninteractive", *command)
    except DemoError as error:
        print(f"bench: {error}", file=sys.stderr)


def why_not_mounted(peer: Peer, work: Path) -> str:
    """One mount for trial: what the command says when it fails, or ""."""
    image, directory = work / "trial", work / "mnt"
    try:
        peer.make(image, 256 << 20)
        peer.mount(image, directory)
        peer.unmount(directory)
    except (BenchError, DemoError) as error:
        return str(error)
    finally:
        peer.abandon(directory)
        peer.remove(image)
    return ""
