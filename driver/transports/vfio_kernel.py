"""The one place where the VFIO transport calls the kernel, and what its refusals mean.

Everything else of the transport goes through a Kernel, so that tests can put one of their own in
its place: open() of a node, ioctl(), and where DMA memory comes from without an IOMMU.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import DeviceBusy, TransportError
from ..holders import describe_process, descriptors
from ..pci.sysfs import Machine, PciFunction

_MAX_INFO_BYTES = 1 << 16
_HUGE_2MB = 21 << 26  # MFD_HUGE_2MB: log2 of the size, in the bits of MAP_HUGE_SHIFT
_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
HUGE_PAGE_BYTES = 2 << 20
UNSAFE_INTERRUPTS = (
    "the IOMMU does not remap interrupts: turn that on in the firmware, or accept the risk: "
)


class Kernel:
    """System calls on the nodes of this machine."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()

    def open(self, path: Path) -> int:
        """A descriptor for reading and writing. Raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: int | bytearray | ctypes.Structure = 0) -> int:
        """ioctl(2); the argument is a number, or memory that the kernel reads and writes. Raises
        OSError.
        """
        if isinstance(argument, int):
            return fcntl.ioctl(fd, request, argument)
        return fcntl.ioctl(fd, request, argument, True)  # type: ignore[no-any-return]

    def huge_memory(self, nbytes: int) -> int:
        """A memfd of huge pages, none of them taken yet. Raises OSError."""
        fd = os.memfd_create("nvmefs-dma", os.MFD_CLOEXEC | os.MFD_HUGETLB | _HUGE_2MB)
        try:
            os.ftruncate(fd, nbytes)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def physical(self, addresses: list[int]) -> list[int]:
        """Physical addresses of pages that have been touched; 0: not ours to know."""
        frames = []
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for address in addresses:
                raw = os.pread(pagemap.fileno(), 8, address // mmap.PAGESIZE * 8)
                entry = int.from_bytes(raw, "little")
                frames.append((entry & _FRAME) * mmap.PAGESIZE if entry & _PRESENT else 0)
        return frames

    # ---- built on these --------------------------------------------------------------------------

    def info(self, fd: int, request: int, wanted: ctypes.Structure, where: str) -> bytes:
        """The answer to an info request, with its capabilities. Raises OSError, TransportError."""
        needed = ctypes.sizeof(wanted)
        while True:
            wanted.argsz = needed
            answer = bytearray(needed)
            answer[: ctypes.sizeof(wanted)] = bytes(wanted)
            self.ioctl(fd, request, answer)
            # With too little room the kernel leaves the capabilities out and says what it needs.
            previous, needed = needed, int.from_bytes(answer[:4], "little")
            if needed <= previous:
                return bytes(answer)
            if needed > _MAX_INFO_BYTES:
                raise TransportError(
                    f"{where}: the kernel wants {needed} bytes for an answer, "
                    f"{_MAX_INFO_BYTES} at most make sense"
                )

    def open_node(self, path: Path, where: str) -> int:
        """A node in /dev. Raises DeviceBusy naming its holder, or TransportError with the cure."""
        try:
            return self.open(path)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceBusy(f"{where}: {self.busy(path)}") from error
            cure = "load VFIO: modprobe vfio-pci"
            if error.errno in (errno.EACCES, errno.EPERM):
                cure = f"as root: {self.give_away(path)}"
                if os.geteuid() == 0 or self.may_use(path):
                    cure = "a process with CAP_SYS_RAWIO may (outside of containers: root)"
            raise TransportError(
                f"{where}: cannot open {path}: {error.strerror}; {cure}"
            ) from error

    def may_use(self, *paths: Path) -> bool:
        """Whether the nodes are there and this user may read and write them."""
        return all(os.access(path, os.R_OK | os.W_OK, effective_ids=True) for path in paths)

    def give_away(self, *paths: Path) -> str:
        """The command by which root lets this user open nodes."""
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            user = str(os.geteuid())
        return " ".join(["chown", user, *map(str, paths)])

    def holder(self, path: Path, ours: int = 0) -> int | None:
        """The process that has a node open; this process only for more than `ours` descriptors."""
        found = [pid for pid, link in descriptors() if _target(link) == str(path)]
        others = [pid for pid in found if pid != os.getpid()]
        if others:
            return others[0]
        return os.getpid() if len(found) > ours else None

    def busy(self, path: Path, ours: int = 0) -> str:
        """In use, by whom, and what to do."""
        return (
            f"{path} is in use by {describe_process(self.holder(path, ours))}: "
            "unmount it there, or end that process"
        )


def _target(link: Path) -> str:
    """Not by stat(2), which might wait for somebody's hanging filesystem."""
    try:
        return os.readlink(link)
    except OSError:
        return ""  # closed meanwhile


@contextmanager
def explained(where: str, what: str, cures: Mapping[int, str] | None = None) -> Iterator[None]:
    """An OSError inside becomes a TransportError: what could not be done, why, and the cure."""
    try:
        yield
    except OSError as error:
        cure = (cures or {}).get(error.errno or 0, "")
        if error.errno == errno.ENOTTY and not cure:
            cure = f"this kernel ({os.uname().release}) is too old for it"
        text = f"{where}: {what}: {error.strerror or error}"
        raise TransportError(f"{text}; {cure}" if cure else text) from error


def not_viable(function: PciFunction) -> str:
    """What keeps the function's group from VFIO, and the cure."""
    group = function.iommu_group()
    blockers = group.blockers() if group else []
    named = ", ".join(f"{each.bdf} (driver {each.driver})" for each in blockers)
    number = f"IOMMU group {group.number}" if group else "its IOMMU group"
    return (
        f"{number} is not viable, the kernel still uses {named or 'a device in it'}; unbind what "
        "else is in the group, or move the drive to another slot"
    )
