"""What a user of the driver may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .identify import IdentifyController

AUTO_TIMEOUT_S = 30.0
LONGEST_TIMEOUT_S = 1e9
POLL_MODES = ("adaptive", "always", "never")


@dataclass(frozen=True)
class DriverOptions:
    """Options of open_controller().

    io_queues            I/O queue pairs asked for: one for Python, the rest for take_queue()
    queue_depth          entries per I/O queue, at most (the controller's MQES may allow fewer)
    command_timeout_s    deadline of an I/O command; None: never; "auto": 30 s, and never for an EBS
                         volume, as AWS advises: there a command may wait long for the network, and
                         Abort does nothing
    admin_timeout_s      deadline of an admin command; None: never
    shutdown_timeout_s   bound of the shutdown handshake where the controller names none (RTD3E)
    retries              how often a command that failed for a passing reason is sent again
    poll                 adaptive: spin as long as the device has been taking, then sleep; always: never
                         sleep while something is awaited (a core of its own); never: only sleep
    poll_ns              longest spin for one completion where poll is adaptive
    dma_bytes            bound of all DMA memory
    max_transfer_bytes   bound of one command's data, below the controller's own (MDTS)
    shadow_doorbells     use them when the controller offers them
    sgls                 use scatter gather lists where the controller offers them and they are better
    keep_alive_s         the Keep Alive timer that the controller is given, where it has one; 0: left as
                         it is, which is off unless the controller turned it on by itself
    identify_patience_s  how long an all-zero Identify is asked again (a fresh EBS volume); 0: not
    lba_bytes            LBA size of the embedded controller; None: its default
    read_only            open the image file of the embedded controller read-only
    noiommu              a PCI function on a machine without an IOMMU: nothing then keeps the device
                         from any memory of the machine
    """

    io_queues: int = 16
    queue_depth: int = 256
    admin_depth: int = 32
    command_timeout_s: float | Literal["auto"] | None = "auto"
    admin_timeout_s: float | None = 60.0
    shutdown_timeout_s: float = 10.0
    retries: int = 4
    poll: str = "adaptive"
    poll_ns: int = 60_000
    dma_bytes: int = 128 << 20
    max_transfer_bytes: int = 2 << 20
    shadow_doorbells: bool = True
    sgls: bool = True
    keep_alive_s: float = 0.0
    identify_patience_s: float = 30.0
    lba_bytes: int | None = None
    read_only: bool = False
    noiommu: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("io_queues", 1, 65535),
            ("queue_depth", 2, 4095),
            ("admin_depth", 4, 4095),
            ("retries", 0, 255),
            ("poll_ns", 0, 1_000_000_000),
            ("dma_bytes", 2 << 20, 1 << 48),
            ("max_transfer_bytes", 64 << 10, 1 << 30),
            ("keep_alive_s", 0, 4_000_000),
        )
        for name, low, high in checks:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}: from {low} to {high} is possible")
        if self.poll not in POLL_MODES:
            raise ValueError(f"poll is {self.poll!r}: one of {', '.join(POLL_MODES)}")
        for name in ("command_timeout_s", "admin_timeout_s"):
            value = getattr(self, name)
            if value == "auto" and name == "command_timeout_s":
                continue
            if value is not None and not (
                isinstance(value, (int, float)) and 0 < value <= LONGEST_TIMEOUT_S
            ):
                raise ValueError(f"{name} is {value}: a positive number, or None for no deadline")

    def deadline_ns(self, identify: IdentifyController | None) -> int:
        """The deadline for a queue pair, 0: none; None: for the admin queue."""
        if identify is None:
            return nanoseconds(self.admin_timeout_s)
        if self.command_timeout_s == "auto":
            return 0 if identify.is_ebs else nanoseconds(AUTO_TIMEOUT_S)
        return nanoseconds(self.command_timeout_s)


def nanoseconds(seconds: float | None) -> int:
    """A deadline for the ring: 0 is none."""
    return 0 if seconds is None else max(1, int(seconds * 1e9))
