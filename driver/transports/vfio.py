"""Transport to an NVMe controller on the PCI bus, through VFIO: the drive itself.

    transport = open_vfio(parse_address("0000:01:00.0"), DriverOptions())

Three ways lead to the device, tried in this order; what follows is the same for all of them:

    iommufd    /dev/vfio/devices/vfioN and /dev/iommu          vfio_iommufd.py
    group      /dev/vfio/vfio and /dev/vfio/N, type1v2         vfio_group.py
    noiommu    the same nodes, no IOMMU: by option only        vfio_noiommu.py

A device may go away while it is in use. The kernel announces an orderly removal (REQ) and waits for
the descriptor to be closed; PCI Express announces errors (ERR). A thread that sleeps on both gives
the device back at once, whatever the other threads do; from then on everything here raises
ControllerGone, and `lost_fd` tells those who wait. A device torn out reads all-ones.

Below: vfio_device.py, vfio_space.py. Above: driver.controller, which sees a Transport like any other.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from .. import registers as reg
from ..errors import ControllerGone, TransportError
from ..pci.sysfs import VFIO_PCI
from . import vfio_abi as abi
from .vfio_device import VfioDevice
from .vfio_group import open_in_group
from .vfio_iommufd import open_cdev
from .vfio_kernel import Kernel, explained
from .vfio_noiommu import PhysicalSpace, check_allowed, open_without_iommu

if TYPE_CHECKING:
    from ..address import Address
    from ..options import DriverOptions
    from ..pci.sysfs import PciFunction
    from .vfio_space import AddressSpace

__all__ = ["VfioTransport", "open_vfio"]

_log = logging.getLogger("nvmefs.driver")

_LOSSES = {
    abi.PCI_REQ_IRQ_INDEX: "the kernel has taken it back (unplugged, or unbound from vfio-pci)",
    abi.PCI_ERR_IRQ_INDEX: "PCI Express reported an error that cannot be corrected; open it again",
}


def open_vfio(
    address: Address, options: DriverOptions, *, kernel: Kernel | None = None
) -> VfioTransport:
    """Opens the function and makes its registers and interrupts usable; DMA comes with map().

    Raises AddressError (no such device, no NVMe controller), DeviceBusy naming the holder, or
    TransportError with what is missing and the command that cures it.
    """
    kernel = kernel or Kernel()
    function = kernel.machine.function(address.endpoint)
    where = function.bdf
    _check_driver(function, options.noiommu)
    device_fd, space = _open(kernel, function, options)
    try:
        space.reserve(options.dma_bytes)
        device = VfioDevice(kernel, device_fd, where)
    except BaseException:
        os.close(device_fd)
        space.close()
        raise
    kind = PhysicalVfioTransport if isinstance(space, PhysicalSpace) else VfioTransport
    try:
        return kind(device, space, address.text, 1 + options.io_queues)
    except BaseException:
        device.close()
        space.close()
        raise


def _check_driver(function: PciFunction, noiommu: bool) -> None:
    """Raises TransportError unless a VFIO driver has the function."""
    machine, where, driver = function.machine, function.bdf, function.driver
    group = function.iommu_group()
    if (group is None or group.noiommu) and not noiommu:
        raise TransportError(
            f"{where}: no IOMMU translates for it: turn on VT-d or AMD-Vi in the firmware and boot "
            "with intel_iommu=on (Intel); without an IOMMU only the unsafe option noiommu is left"
        )
    if group is None or group.noiommu:
        check_allowed(machine, where)
    elif noiommu:
        _log.warning("%s: there is an IOMMU, so it is used: noiommu has no effect", where)
    if "vfio" in driver:
        return
    bound = f"bound to the driver {driver}" if driver else "bound to no driver"
    load = "" if machine.has_driver(VFIO_PCI) else "modprobe vfio-pci (it is not loaded), then "
    raise TransportError(
        f"{where}: {bound}, not to {VFIO_PCI}; give it away with: {load}nvmefs bind {where}"
    )


def _open(
    kernel: Kernel, function: PciFunction, options: DriverOptions
) -> tuple[int, AddressSpace]:
    """The first way that exists and that this user may go."""
    where = function.bdf
    node = function.vfio_group_node()
    group = function.iommu_group()
    if group is not None and group.noiommu and node is not None:
        return open_without_iommu(kernel, function, node, options.dma_bytes, where)
    device, iommu = function.vfio_cdev(), kernel.machine.dev / "iommu"
    if device is not None and device.exists() and iommu.exists():
        others_way = node is not None and kernel.may_use(node, kernel.machine.dev / "vfio/vfio")
        if kernel.may_use(device, iommu) or not others_way:
            return open_cdev(kernel, function, device, iommu)
    if node is None:
        raise TransportError(f"{where}: it has left its IOMMU group: bind it again")
    return open_in_group(kernel, function, node, where)


class VfioTransport:
    """A PCI function as a Transport. All methods may be called from any thread."""

    name = "vfio"

    def __init__(
        self, device: VfioDevice, space: AddressSpace, address: str, wanted_vectors: int
    ) -> None:
        self.address = address
        self.way = space.way
        self.iova_ranges: Sequence[tuple[int, int]] = space.iova_ranges
        self._device = device
        self._space = space
        self._gone = ""
        self._lock = threading.Lock()
        device.enable()
        self.doorbells = device.doorbells
        self.vectors = self._negotiate(wanted_vectors)
        self._notices: dict[int, int] = {}  # eventfd -> kind of notice
        self.lost_fd = _eventfd()  # driver.transports.LossNotifier
        self._stop_fd = _eventfd()
        try:
            self._subscribe()
        except BaseException:
            self._close_eventfds()
            raise
        self._watcher = threading.Thread(target=self._watch, name=f"vfio {address}", daemon=True)
        self._watcher.start()

    # ---- interrupts ------------------------------------------------------------------------------

    def _negotiate(self, wanted: int) -> int:
        """How many vectors the kernel really has for us: the device's table may promise more."""
        index = self._device.interrupt_index
        count = min(self._device.interrupt_count, wanted)
        while count:
            with explained(self.address, f"{count} interrupt vectors cannot be had"):
                granted = self._device.signal(index, [-1] * count)
                if granted >= count:
                    self._device.silence(index)
                    return count
            count = granted
        return 0

    def _subscribe(self) -> None:
        """Asks for the notices that this device has."""
        for index in _LOSSES:
            if self._device.interrupts(index):
                fd = _eventfd()
                self._notices[fd] = index
                with explained(self.address, "the kernel cannot announce a removal"):
                    self._device.signal(index, [fd])

    def enable_interrupts(self, eventfds: Sequence[int]) -> None:
        """Vector i signals eventfds[i] from now on; the kernel keeps references of its own."""
        what = f"cannot signal {len(eventfds)} of {self.vectors} interrupt vectors"
        if len(eventfds) > self.vectors:
            raise TransportError(f"{self.address}: {what}")
        self._check()
        index = self._device.interrupt_index
        with explained(self.address, what):
            self._device.silence(index)
            granted = self._device.signal(index, eventfds)
        if granted < len(eventfds):
            raise TransportError(f"{self.address}: {what}: the kernel has {granted}")

    def disable_interrupts(self) -> None:
        """No vector signals anything any more."""
        self._check()
        with explained(self.address, "cannot disable interrupts"):
            self._device.silence(self._device.interrupt_index)

    def vector_cpus(self, vector: int) -> set[int]:
        """The CPUs that its interrupts go to; empty where the kernel does not tell."""
        try:
            return self._device.vector_cpus(vector)
        except (OSError, ValueError) as error:  # only the thread's place depends on it
            _log.info("%s: vector %d goes to unknown CPUs: %s", self.address, vector, error)
            return set()

    # ---- loss ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """The thread: sleeps until the kernel wants the device back, or close() ends it."""
        poll = select.poll()
        for fd in (self._stop_fd, *self._notices):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll()]
        if self._stop_fd not in ready:
            self._lose(_LOSSES[self._notices[ready[0]]])

    def _lose(self, reason: str) -> None:
        with self._lock:
            self._gone = f"{self.address}: the controller is gone: {reason}"
            self._release()
        _log.error("%s", self._gone)
        os.eventfd_write(self.lost_fd, 1)

    def _release(self) -> None:
        """The device first: afterwards it does no DMA, and its memory may go."""
        self._device.close()
        self._space.close()

    def _check(self) -> None:
        if self._gone:
            raise ControllerGone(self._gone)

    # ---- registers -------------------------------------------------------------------------------

    def read32(self, offset: int) -> int:
        """32-bit register at BAR0 + offset."""
        value = self._device.read32(offset)
        if value == reg.ALL_ONES_32:
            self._suspect()
        return value

    def read64(self, offset: int) -> int:
        """64-bit register at BAR0 + offset."""
        value = self._device.read64(offset)
        if value == reg.ALL_ONES_64:
            self._suspect()
        return value

    def write32(self, offset: int, value: int) -> None:
        """Writes a 32-bit register; posted: nothing tells when the device has seen it."""
        self._check()
        self._device.write32(offset, value)

    def write64(self, offset: int, value: int) -> None:
        """Writes a 64-bit register as its two halves, lower one first."""
        self._check()
        self._device.write64(offset, value)

    def _suspect(self) -> None:
        """All-ones may be a register's value, but never the version's. Raises ControllerGone."""
        self._check()
        if self._device.read32(reg.VS) == reg.ALL_ONES_32:
            raise ControllerGone(
                f"{self.address}: registers read all-ones: the controller is gone (unplugged, off)"
            )

    # ---- memory ----------------------------------------------------------------------------------

    def map(self, fd: int, offset: int, length: int, iova: int) -> None:
        """Makes [offset, offset + length) of `fd` DMA memory at `iova`; multiples of a page."""
        with self._lock:
            self._check()
            self._space.map(fd, offset, length, iova)

    def unmap(self, iova: int, length: int) -> None:
        """Takes back one region, exactly as it was mapped; no access to it after the return."""
        with self._lock:
            self._check()
            self._space.unmap(iova, length)

    # ---- end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Gives the function back: the kernel resets it, and it stays bound to vfio-pci.
        Idempotent.
        """
        with self._lock:
            if self._stop_fd < 0:
                return
            os.eventfd_write(self._stop_fd, 1)
        self._watcher.join()
        with self._lock:
            self._gone = self._gone or f"{self.address}: the controller is closed"
            with suppress(OSError):  # closing the descriptor does as much
                self._device.silence(self._device.interrupt_index)
            self._release()
            self._close_eventfds()

    def _close_eventfds(self) -> None:
        for fd in (self._stop_fd, self.lost_fd, *self._notices):
            os.close(fd)
        self._stop_fd = self.lost_fd = -1
        self._notices.clear()


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class PhysicalVfioTransport(VfioTransport):
    """Without an IOMMU: DMA memory is the transport's to give (a MemoryOwner)."""

    _space: PhysicalSpace

    @property
    def largest_dma_bytes(self) -> int:
        """The longest free stretch of physically contiguous memory."""
        return self._space.largest_bytes

    def allocate_dma(self, nbytes: int) -> tuple[int, int, int]:
        """(fd, offset, physical address) of contiguous memory. Raises TransportError."""
        with self._lock:
            self._check()
            return self._space.allocate(nbytes)
