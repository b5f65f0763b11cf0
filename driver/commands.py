"""The 64 bytes of each command, as bytes. The ring fills in the command id and the PRPs.

Numbers that the wire has 0-based (blocks, queue sizes, dwords) are counts here. What a command
means and which limits it must respect is the business of the callers; only what would not fit a
field is refused (struct.error, which is a bug of the caller).

NVM Express base specification 2.0, section 5; NVM command set 1.0, section 3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

from . import trace

_SQE = struct.Struct("<BBHIQQQQIIIIII")
_pack = _SQE.pack
_RANGE = struct.Struct("<IIQ")
_COPY_RANGE = struct.Struct("<8xQH14x")

SQE_BYTES = 64
CQE_BYTES = 16
IDENTIFY_BYTES = 4096
RANGE_BYTES = _RANGE.size
ALL_NAMESPACES = 0xFFFFFFFF


class Admin(IntEnum):
    """Admin opcodes."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80


class Io(IntEnum):
    """I/O opcodes of the NVM command set."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    COPY = 0x19


class Feature(IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIG = 0x0B
    KEEP_ALIVE_TIMER = 0x0F
    HOST_BEHAVIOR = 0x16


class Cns(IntEnum):
    """What Identify returns."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    COMMAND_SET_CONTROLLER = 0x06
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    CONTROLLERS_OF_NAMESPACE = 0x12
    CONTROLLERS = 0x13


class Log(IntEnum):
    """Log page identifiers."""

    ERROR = 0x01
    SMART = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05
    EBS = 0xD0


def _sqe(
    opcode: int,
    nsid: int = 0,
    cdw10: int = 0,
    cdw11: int = 0,
    cdw12: int = 0,
    cdw13: int = 0,
    cdw14: int = 0,
) -> bytes:
    return _pack(opcode, 0, 0, nsid, 0, 0, 0, 0, cdw10, cdw11, cdw12, cdw13, cdw14, 0)


def opcode_name(command: bytes, admin: bool) -> str:
    """The command's name for messages, e.g. "Write" or "I/O command 0x9a"."""
    names: type[Admin] | type[Io] = Admin if admin else Io
    try:
        return names(command[0]).name.replace("_", " ").capitalize()
    except ValueError:
        return f"{'admin' if admin else 'I/O'} command {command[0]:#04x}"


# ---- admin ---------------------------------------------------------------------------------------


def identify(cns: int, nsid: int = 0, csi: int = 0) -> bytes:
    """Identify: 4,096 bytes come back (section 5.17)."""
    return _sqe(Admin.IDENTIFY, nsid, cns, csi << 24)


def create_cq(qid: int, entries: int, vector: int | None) -> bytes:
    """Create I/O Completion Queue, contiguous (section 5.4); vector None: no interrupts.

    The address of the queue goes with the submission, as if it were data.
    """
    interrupts = 0 if vector is None else vector << 16 | 2
    return _sqe(Admin.CREATE_CQ, 0, (entries - 1) << 16 | qid, interrupts | 1)


def create_sq(qid: int, entries: int, cqid: int) -> bytes:
    """Create I/O Submission Queue, contiguous, medium priority (section 5.5)."""
    return _sqe(Admin.CREATE_SQ, 0, (entries - 1) << 16 | qid, cqid << 16 | 2 << 1 | 1)


def delete_sq(qid: int) -> bytes:
    """Delete I/O Submission Queue (section 5.7)."""
    return _sqe(Admin.DELETE_SQ, 0, qid)


def delete_cq(qid: int) -> bytes:
    """Delete I/O Completion Queue (section 5.6)."""
    return _sqe(Admin.DELETE_CQ, 0, qid)


def set_features(feature: int, value: int, nsid: int = 0) -> bytes:
    """Set Features, current value only (section 5.27)."""
    return _sqe(Admin.SET_FEATURES, nsid, feature, value)


def get_features(feature: int, nsid: int = 0) -> bytes:
    """Get Features, current value (section 5.15)."""
    return _sqe(Admin.GET_FEATURES, nsid, feature)


def get_log_page(
    log: int, nbytes: int, nsid: int = ALL_NAMESPACES, *, retain: bool = False
) -> bytes:
    """Get Log Page from offset 0 (section 5.16); retain: the event that points at it stays."""
    dwords = nbytes // 4 - 1
    return _sqe(
        Admin.GET_LOG_PAGE, nsid, (dwords & 0xFFFF) << 16 | int(retain) << 15 | log, dwords >> 16
    )


def abort(sqid: int, cid: int) -> bytes:
    """Abort (section 5.1)."""
    return _sqe(Admin.ABORT, 0, cid << 16 | sqid)


def async_event_request() -> bytes:
    """Asynchronous Event Request (section 5.2)."""
    return _sqe(Admin.ASYNC_EVENT_REQUEST)


def keep_alive() -> bytes:
    """Keep Alive (section 5.18)."""
    return _sqe(Admin.KEEP_ALIVE)


def format_nvm(nsid: int, lba_format: int, erase: int) -> bytes:
    """Format NVM, without metadata and protection (section 5.14); erase: 0 no, 1 data, 2 the key."""
    upper = lba_format >> 4 & 3
    return _sqe(Admin.FORMAT_NVM, nsid, lba_format & 15 | erase << 9 | upper << 12)


def create_namespace() -> bytes:
    """Namespace Management, create; 4,096 bytes say what (section 5.23)."""
    return _sqe(Admin.NAMESPACE_MANAGEMENT, 0, 0)


def delete_namespace(nsid: int) -> bytes:
    """Namespace Management, delete (section 5.23)."""
    return _sqe(Admin.NAMESPACE_MANAGEMENT, nsid, 1)


def attach_namespace(nsid: int, *, attach: bool) -> bytes:
    """Namespace Attachment; 4,096 bytes list the controllers (section 5.22)."""
    return _sqe(Admin.NAMESPACE_ATTACHMENT, nsid, 0 if attach else 1)


def doorbell_buffer_config() -> bytes:
    """Doorbell Buffer Config (section 5.8): shadow and event index buffers, a page each.

    Its two addresses sit where data pointers do, but they are not one buffer: the caller submits
    them as two page-sized segments.
    """
    return _sqe(Admin.DOORBELL_BUFFER_CONFIG)


# ---- I/O -----------------------------------------------------------------------------------------


def read(nsid: int, lba: int, blocks: int) -> bytes:
    """Read of 1 to 65,536 blocks (NVM command set, section 3.2.4)."""
    if trace.enabled:
        trace.hop("commands.read", nsid=nsid, lba=lba, blocks=blocks)
    return _pack(
        2, 0, 0, nsid, 0, 0, 0, 0, lba & 0xFFFFFFFF, lba >> 32, blocks - 1 & 0xFFFF, 0, 0, 0
    )


def write(nsid: int, lba: int, blocks: int, fua: bool = False) -> bytes:
    """Write of 1 to 65,536 blocks; fua: on the medium before it completes (section 3.2.6)."""
    if trace.enabled:
        trace.hop("commands.write", nsid=nsid, lba=lba, blocks=blocks, fua=fua)
    cdw12 = blocks - 1 & 0xFFFF | (0x40000000 if fua else 0)
    return _pack(1, 0, 0, nsid, 0, 0, 0, 0, lba & 0xFFFFFFFF, lba >> 32, cdw12, 0, 0, 0)


def flush(nsid: int) -> bytes:
    """Flush (base specification, section 7.1)."""
    if trace.enabled:
        trace.hop("commands.flush", nsid=nsid)
    return _sqe(Io.FLUSH, nsid)


def compare(nsid: int, lba: int, blocks: int) -> bytes:
    """Compare (section 3.2.1)."""
    if trace.enabled:
        trace.hop("commands.compare", nsid=nsid, lba=lba, blocks=blocks)
    return _sqe(Io.COMPARE, nsid, lba & 0xFFFFFFFF, lba >> 32, blocks - 1 & 0xFFFF)


def verify(nsid: int, lba: int, blocks: int) -> bytes:
    """Verify (section 3.2.5)."""
    return _sqe(Io.VERIFY, nsid, lba & 0xFFFFFFFF, lba >> 32, blocks - 1 & 0xFFFF)


def write_zeroes(nsid: int, lba: int, blocks: int, deallocate: bool) -> bytes:
    """Write Zeroes; deallocate: DEAC, the blocks may be deallocated (section 3.2.8)."""
    if trace.enabled:
        trace.hop("commands.write_zeroes", nsid=nsid, lba=lba, blocks=blocks)
    cdw12 = blocks - 1 & 0xFFFF | (1 << 25 if deallocate else 0)
    return _sqe(Io.WRITE_ZEROES, nsid, lba & 0xFFFFFFFF, lba >> 32, cdw12)


def dataset_management(nsid: int, ranges: int) -> bytes:
    """Dataset Management, attribute Deallocate, of 1 to 256 ranges (section 3.2.3)."""
    if trace.enabled:
        trace.hop("commands.deallocate", nsid=nsid, ranges=ranges)
    return _sqe(Io.DATASET_MANAGEMENT, nsid, ranges - 1, 4)


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """(lba, blocks) pairs as the ranges that Dataset Management takes, 16 bytes each."""
    return b"".join(_RANGE.pack(0, blocks, lba) for lba, blocks in ranges)


def copy(nsid: int, destination: int, ranges: int) -> bytes:
    """Copy of 1 to 256 source ranges, descriptor format 0, to a place of their sum (section 3.2.2)."""
    if trace.enabled:
        trace.hop("commands.copy", nsid=nsid, lba=destination, ranges=ranges)
    return _sqe(Io.COPY, nsid, destination & 0xFFFFFFFF, destination >> 32, ranges - 1)


def pack_copy_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """(lba, blocks) pairs as the source ranges that Copy takes, 32 bytes each."""
    return b"".join(_COPY_RANGE.pack(lba, blocks - 1) for lba, blocks in ranges)
