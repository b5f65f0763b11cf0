"""What can go wrong in the driver, as one tree of exceptions.

Each message is a single line: what happened, with which value, where, and what to do about it.
"""

from __future__ import annotations

SUCCESS = 0

# (status code type, status code) -> name. NVM Express base specification 2.0, figures 94-98,
# NVM command set 1.0, figures 20-21.
_STATUS_NAMES: dict[tuple[int, int], str] = {
    (0, 0x00): "Successful Completion",
    (0, 0x01): "Invalid Command Opcode",
    (0, 0x02): "Invalid Field in Command",
    (0, 0x03): "Command ID Conflict",
    (0, 0x04): "Data Transfer Error",
    (0, 0x05): "Commands Aborted due to Power Loss Notification",
    (0, 0x06): "Internal Error",
    (0, 0x07): "Command Abort Requested",
    (0, 0x08): "Command Aborted due to SQ Deletion",
    (0, 0x09): "Command Aborted due to Failed Fused Command",
    (0, 0x0A): "Command Aborted due to Missing Fused Command",
    (0, 0x0B): "Invalid Namespace or Format",
    (0, 0x0C): "Command Sequence Error",
    (0, 0x0D): "Invalid SGL Segment Descriptor",
    (0, 0x0E): "Invalid Number of SGL Descriptors",
    (0, 0x0F): "Data SGL Length Invalid",
    (0, 0x10): "Metadata SGL Length Invalid",
    (0, 0x11): "SGL Descriptor Type Invalid",
    (0, 0x12): "Invalid Use of Controller Memory Buffer",
    (0, 0x13): "PRP Offset Invalid",
    (0, 0x14): "Atomic Write Unit Exceeded",
    (0, 0x15): "Operation Denied",
    (0, 0x16): "SGL Offset Invalid",
    (0, 0x18): "Host Identifier Inconsistent Format",
    (0, 0x19): "Keep Alive Timer Expired",
    (0, 0x1A): "Keep Alive Timeout Invalid",
    (0, 0x1B): "Command Aborted due to Preempt and Abort",
    (0, 0x1C): "Sanitize Failed",
    (0, 0x1D): "Sanitize In Progress",
    (0, 0x1E): "SGL Data Block Granularity Invalid",
    (0, 0x1F): "Command Not Supported for Queue in CMB",
    (0, 0x20): "Namespace is Write Protected",
    (0, 0x21): "Command Interrupted",
    (0, 0x22): "Transient Transport Error",
    (0, 0x23): "Command Prohibited by Command and Feature Lockdown",
    (0, 0x24): "Admin Command Media Not Ready",
    (0, 0x80): "LBA Out of Range",
    (0, 0x81): "Capacity Exceeded",
    (0, 0x82): "Namespace Not Ready",
    (0, 0x83): "Reservation Conflict",
    (0, 0x84): "Format In Progress",
    (1, 0x00): "Completion Queue Invalid",
    (1, 0x01): "Invalid Queue Identifier",
    (1, 0x02): "Invalid Queue Size",
    (1, 0x03): "Abort Command Limit Exceeded",
    (1, 0x05): "Asynchronous Event Request Limit Exceeded",
    (1, 0x06): "Invalid Firmware Slot",
    (1, 0x07): "Invalid Firmware Image",
    (1, 0x08): "Invalid Interrupt Vector",
    (1, 0x09): "Invalid Log Page",
    (1, 0x0A): "Invalid Format",
    (1, 0x0B): "Firmware Activation Requires Conventional Reset",
    (1, 0x0C): "Invalid Queue Deletion",
    (1, 0x0D): "Feature Identifier Not Saveable",
    (1, 0x0E): "Feature Not Changeable",
    (1, 0x0F): "Feature Not Namespace Specific",
    (1, 0x14): "Overlapping Range",
    (1, 0x15): "Namespace Insufficient Capacity",
    (1, 0x16): "Namespace Identifier Unavailable",
    (1, 0x18): "Namespace Already Attached",
    (1, 0x19): "Namespace Is Private",
    (1, 0x1A): "Namespace Not Attached",
    (1, 0x1B): "Thin Provisioning Not Supported",
    (1, 0x1C): "Controller List Invalid",
    (1, 0x80): "Conflicting Attributes",
    (1, 0x81): "Invalid Protection Information",
    (1, 0x82): "Attempted Write to Read Only Range",
    (1, 0x83): "Command Size Limit Exceeded",
    (2, 0x80): "Write Fault",
    (2, 0x81): "Unrecovered Read Error",
    (2, 0x82): "End-to-end Guard Check Error",
    (2, 0x83): "End-to-end Application Tag Check Error",
    (2, 0x84): "End-to-end Reference Tag Check Error",
    (2, 0x85): "Compare Failure",
    (2, 0x86): "Access Denied",
    (2, 0x87): "Deallocated or Unwritten Logical Block",
    (2, 0x88): "End-to-End Storage Tag Check Error",
    (3, 0x00): "Internal Path Error",
    (3, 0x01): "Asymmetric Access Persistent Loss",
    (3, 0x02): "Asymmetric Access Inaccessible",
    (3, 0x03): "Asymmetric Access Transition",
    (3, 0x60): "Controller Pathing Error",
    (3, 0x70): "Host Pathing Error",
    (3, 0x71): "Command Aborted By Host",
}
_TYPE_NAMES = {
    0: "Generic",
    1: "Command Specific",
    2: "Media and Data Integrity",
    3: "Path Related",
    7: "Vendor Specific",
}


def status_name(status: int) -> str:
    """The specification's name of a 15-bit status field (phase bit removed)."""
    sct, sc = status >> 8 & 7, status & 0xFF
    known = _STATUS_NAMES.get((sct, sc))
    return known if known else f"{_TYPE_NAMES.get(sct, 'Reserved')} status {sc:#04x}"


class DriverError(Exception):
    """The root of everything this package raises on purpose."""


class AddressError(DriverError):
    """An address that cannot be understood, or names a transport that is not there."""


class TransportError(DriverError):
    """The way to the controller is broken or could not be opened."""


class ControllerGone(TransportError):
    """The controller does not answer any more: unplugged, powered off, or its process ended."""


class DeviceBusy(DriverError):
    """Somebody else holds the device; the message names the holder."""


class ControllerError(DriverError):
    """A controller that cannot be brought up, or answers what the specification does not allow."""


class ControllerFailed(ControllerError):
    """The controller was given up (a command never finished, or it reported a fatal status)."""


class ControllerClosed(DriverError):
    """The controller object has been closed."""


class InvalidRequest(DriverError, ValueError):
    """A request that makes no sense for this namespace; nothing was sent."""


class Unsupported(InvalidRequest):
    """The controller says that it cannot do this; nothing was sent."""


class WriteProtected(InvalidRequest):
    """A change was asked of a read-only namespace; nothing was sent."""


class PoolExhausted(DriverError):
    """The DMA pool is at its bound, or the request is larger than the bound."""


class CommandError(DriverError):
    """The controller completed a command with an error status.

    `status` is the 15-bit field of completion dword 3 without the phase bit; `.sct`, `.sc`,
    `.crd` and `.dnr` are its parts, `.name` is the specification's name of it.
    """

    def __init__(self, status: int, what: str = "command") -> None:
        self.status = status
        self.sct = status >> 8 & 7
        self.sc = status & 0xFF
        self.crd = status >> 11 & 3
        self.dnr = bool(status & 0x4000)
        self.name = status_name(status)
        self.what = what
        retry = ", do not retry" if self.dnr else ""
        super().__init__(f"{what}: {self.name} (type {self.sct:#x}, code {self.sc:#04x}{retry})")


class CommandTimeout(DriverError):
    """A command did not complete within its deadline. What it did to the medium is not known."""
