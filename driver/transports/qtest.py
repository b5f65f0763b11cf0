"""Transport to Debian's QEMU NVMe controller without a guest: a controller that nobody here wrote,
for tests, in an unprivileged process.

    qtest:disk.img[,second.img][?option=value&...]

Each image is a namespace, from 1 on. Options are properties of QEMU's devices `nvme` and `nvme-ns`
(mdts, max_ioqpairs, msix_qsize, logical_block_size, ...; `-device nvme,help` lists them), and
    nsid         the namespace that is meant, 1 if not given
    interrupts   "off": offer no vectors, so that the driver looks by itself
    memory       MiB of guest memory, which DMA memory is cut from (256)
    subsystem    "on": the controller is one of an NVM subsystem, so that namespaces can be attached
                 and detached (with shared=on; detached=on: to begin with)

Registers: a text message each, about 20 us. Doorbells too: nothing is mapped. Memory: the guest's
physical memory is a memfd, and an IOVA is an offset in it, so the memory is the transport's to give
(allocate_dma). Interrupts: MSI-X is a 32-bit store to an address; the table's entries point at words
of guest memory, and a thread that looks at them, at growing intervals, signals the eventfds.

QEMU 7.2 does not implement FUA: it is no evidence for it.

Below: qemu.py. Above: driver.controller, which sees a Transport like any other.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence

from ..errors import AddressError, TransportError
from . import Doorbells
from .qemu import Qemu

__all__ = ["QtestTransport", "open_qtest", "parse_endpoint"]

_MIB = 1 << 20
_PAGE_BYTES = 4096
_BAR0 = 0xE000_0000
_DEVFN = 4 << 3
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_COMMAND, _BAR0_REGISTER, _CAPABILITIES = 0x04, 0x10, 0x34
_MEMORY_MASTER_NO_INTX = 0x0406
_MSIX = 0x11
_MSIX_ENABLE = 0x8000
# Below 1 MiB lies what PCs have there; then a page of interrupt words, then DMA memory.
_WORDS = _MIB
_FIRST_IOVA = 2 * _MIB
_FIRST_NAP_S, _LONGEST_NAP_S = 20e-6, 0.001
_NAMESPACE_OPTIONS = re.compile(
    r"(logical|physical)_block_size|discard_granularity|ms|mset|pi|pil|pif|mssrl|mcl|msrc|"
    r"shared|detached|uuid|eui64|min_io_size|opt_io_size|zoned|zoned\.(?!zasl|auto_).*"
)


def parse_endpoint(text: str) -> tuple[list[str], dict[str, str]]:
    """(images, options) of what follows `qtest:`. Raises AddressError."""
    paths, _, query = text.partition("?")
    images = paths.split(",")
    if not all(images):
        raise AddressError(f"qtest:{text}: an image is missing: qtest:disk.img?mdts=5")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        match = re.fullmatch(r"([a-z][a-z0-9_.-]*)=([A-Za-z0-9._-]+)", part)
        if match is None or match.group(1) in options:
            raise AddressError(f"qtest:{text}: {part!r} is not an option: write name=value, once")
        options[match.group(1)] = match.group(2)
    return images, options


def open_qtest(
    images: Sequence[str | os.PathLike[str]],
    options: Mapping[str, str | int] | None = None,
    *,
    filters: Sequence[Mapping[str, object]] = (),
    address: str | None = None,
) -> QtestTransport:
    """Starts QEMU with one controller and a namespace for each raw image (CC.EN is 0).

    options: as in an address. filters: block drivers as -blockdev takes them (blkdebug, throttle),
    stacked between the image and the namespace, the first one lowest.

    Raises TransportError with QEMU's own words: an option it does not know, an image in use.
    """
    names = [os.fspath(image) for image in images]
    label = address if address is not None else f"qtest:{','.join(names)}"
    chosen = {name: str(value) for name, value in (options or {}).items()}
    chosen.pop("nsid", None)
    interrupts = chosen.pop("interrupts", "on")
    memory = chosen.pop("memory", "256")
    subsystem = chosen.pop("subsystem", "off")
    if interrupts not in ("on", "off"):
        raise AddressError(f"{label}: interrupts is {interrupts!r}: on or off")
    if subsystem not in ("on", "off"):
        raise AddressError(f"{label}: subsystem is {subsystem!r}: on or off")
    if not memory.isdecimal() or not 8 <= int(memory) <= 2048:
        raise AddressError(f"{label}: memory is {memory!r}: from 8 to 2048 MiB")
    namespace = "".join(
        f",{name}={chosen.pop(name)}" for name in list(chosen) if _NAMESPACE_OPTIONS.fullmatch(name)
    )
    controller = "".join(f",{name}={value}" for name, value in chosen.items())
    arguments = ["-device", f"nvme,id=nvme,addr=04.0,serial=qtest{controller}"]
    if subsystem == "on":
        arguments[1] += ",subsys=subsystem"
        arguments = ["-device", "nvme-subsys,id=subsystem", *arguments]
    for nsid, image in enumerate(names, 1):
        node: dict[str, object] = {"driver": "file", "filename": os.path.abspath(image)}
        for extra in filters:
            node = {**extra, ("file" if extra["driver"] == "throttle" else "image"): node}
        node = {"driver": "raw", "node-name": f"disk{nsid}", "file": node, "discard": "unmap"}
        arguments += ["-blockdev", json.dumps(node)]
        device = f"nvme-ns,id=ns{nsid},bus=nvme,drive=disk{nsid},nsid={nsid}{namespace}"
        arguments += ["-device", device]
    qemu = Qemu(arguments, int(memory) * _MIB, label=label)
    try:
        return QtestTransport(qemu, int(memory) * _MIB, label, interrupts == "on")
    except BaseException:
        qemu.close()
        raise


class QtestTransport:
    """QEMU's controller as a Transport. For the thread that opened it."""

    name = "qtest"
    doorbells: Doorbells | None = None

    def __init__(self, qemu: Qemu, memory_bytes: int, address: str, interrupts: bool) -> None:
        self.qemu = qemu
        self.address = address
        self.iova_ranges: Sequence[tuple[int, int]] = ((_FIRST_IOVA, memory_bytes - 1),)
        self._next_iova = _FIRST_IOVA
        self._regions: dict[int, int] = {}
        self._config_write(_BAR0_REGISTER, _BAR0, 4)
        self._config_write(_BAR0_REGISTER + 4, 0, 4)
        self._config_write(_COMMAND, _MEMORY_MASTER_NO_INTX, 2)
        self._msix = self._find_msix()
        self._table, self.table_entries = self._msix_table()
        self.vectors = min(self.table_entries, _PAGE_BYTES // 4) if interrupts else 0
        self._memory = mmap.mmap(qemu.memory_fd, _PAGE_BYTES, offset=_WORDS)
        self._thread: threading.Thread | None = None
        self._stop = False

    # ---- PCI configuration ---------------------------------------------------------------------

    def _config_read(self, register: int) -> int:
        """32 bits of configuration space."""
        self._config_select(register)
        return int(self.qemu.qtest(f"inl {_CONFIG_DATA:#x}"), 16)

    def _config_write(self, register: int, value: int, size: int) -> None:
        self._config_select(register)
        port = _CONFIG_DATA + register % 4
        self.qemu.qtest(f"out{'wl'[size // 4]} {port:#x} {value:#x}")

    def _config_select(self, register: int) -> None:
        where = 1 << 31 | _DEVFN << 8 | register & 0xFC
        self.qemu.qtest(f"outl {_CONFIG_ADDRESS:#x} {where:#x}")

    def _find_msix(self) -> int:
        at = self._config_read(_CAPABILITIES) & 0xFC
        for _ in range(48):  # as many as fit: a loop in the list must not be one here
            head = self._config_read(at) if at else _MSIX
            if head & 0xFF == _MSIX:
                break
            at = head >> 8 & 0xFC
        if not at:
            raise TransportError(f"{self.address}: the controller has no MSI-X capability")
        return at

    def _msix_table(self) -> tuple[int, int]:
        """Offset in BAR0 and number of entries."""
        entries = (self._config_read(self._msix) >> 16 & 0x7FF) + 1
        where = self._config_read(self._msix + 4)
        if where & 7:
            raise TransportError(
                f"{self.address}: the MSI-X table is in BAR {where & 7}, not in BAR 0: "
                "leave msix-exclusive-bar off"
            )
        return where & ~7, entries

    # ---- registers -----------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """32-bit register at BAR0 + offset."""
        return int(self.qemu.qtest(f"readl {_BAR0 + offset:#x}"), 16)

    def read64(self, offset: int) -> int:
        """64-bit register at BAR0 + offset."""
        return int(self.qemu.qtest(f"readq {_BAR0 + offset:#x}"), 16)

    def write32(self, offset: int, value: int) -> None:
        """Writes a 32-bit register; returns when QEMU has taken it."""
        self.qemu.qtest(f"writel {_BAR0 + offset:#x} {value:#x}")

    def write64(self, offset: int, value: int) -> None:
        """Writes a 64-bit register."""
        self.qemu.qtest(f"writeq {_BAR0 + offset:#x} {value:#x}")

    # ---- memory --------------------------------------------------------------------------------

    @property
    def largest_dma_bytes(self) -> int:
        """What is left of the guest's memory."""
        return self.iova_ranges[0][1] + 1 - self._next_iova

    def allocate_dma(self, nbytes: int) -> tuple[int, int, int]:
        """The next nbytes of guest memory, as (fd, offset, IOVA); they are visible already."""
        iova, last = self._next_iova, self.iova_ranges[0][1]
        if iova + nbytes - 1 > last:
            raise TransportError(
                f"{self.address}: {nbytes} bytes of DMA memory do not fit into the rest of "
                f"{(last + 1) // _MIB} MiB of guest memory: give memory=MIB"
            )
        self._next_iova += nbytes
        self._regions[iova] = nbytes
        return self.qemu.memory_fd, iova, iova

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Refused: only what allocate_dma() gives is visible to the controller."""
        raise TransportError(
            f"{self.address}: {length} bytes at IOVA {iova:#x} cannot be mapped: without an IOMMU "
            "DMA memory is a part of the guest's own"
        )

    def unmap(self, iova: int, length: int) -> None:
        """Takes back one region of allocate_dma(). It is not given out again."""
        if self._regions.pop(iova, None) != length:
            raise TransportError(f"{self.address}: no region of {length} bytes at IOVA {iova:#x}")

    # ---- interrupts ----------------------------------------------------------------------------

    def enable_interrupts(self, eventfds: Sequence[int]) -> None:
        """Programs the MSI-X table and starts the thread that looks at its words."""
        if len(eventfds) > self.vectors:
            raise TransportError(f"{self.address}: {len(eventfds)} of {self.vectors} vectors")
        self.disable_interrupts()
        self._memory[:] = bytes(_PAGE_BYTES)
        for i in range(len(eventfds)):
            entry = self._table + 16 * i
            self.write64(entry, _WORDS + 4 * i)
            self.write32(entry + 8, 1)
            self.write32(entry + 12, 0)
        self._config_write(self._msix + 2, _MSIX_ENABLE, 2)
        fds = list(eventfds)
        self._stop = False
        self._thread = threading.Thread(target=self._look, args=(fds,), name="qtest", daemon=True)
        self._thread.start()

    def disable_interrupts(self) -> None:
        """No vector signals anything any more."""
        if self._thread is None:
            return
        self._end_thread()
        self._config_write(self._msix + 2, 0, 2)

    def _end_thread(self) -> None:
        self._stop = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _look(self, eventfds: list[int]) -> None:
        """The thread. Nothing tells of a store to memory, so it looks."""
        quiet = bytes(4 * len(eventfds))
        nap_s = _FIRST_NAP_S
        with (
            memoryview(self._memory) as view,
            view.cast("I") as every,
            every[: len(eventfds)] as words,
        ):
            while not self._stop:
                if words.tobytes() == quiet:
                    time.sleep(nap_s)
                    nap_s = min(nap_s * 1.3, _LONGEST_NAP_S)
                    continue
                nap_s = _FIRST_NAP_S
                for i, fd in enumerate(eventfds):
                    if words[i]:
                        # Cleared before it is passed on: what comes between is passed on too.
                        words[i] = 0
                        os.eventfd_write(fd, 1)

    def close(self) -> None:
        """Ends QEMU. Idempotent."""
        self._end_thread()
        self._memory.close()
        self.qemu.close()
