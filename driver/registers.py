"""The controller's registers: offsets in BAR0 and the fields of CAP, CC and CSTS.

NVM Express base specification 2.0, section 3.1.3. Registers come from the device: parse() of each
type never fails, and the caller judges what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

CAP = 0x00
VS = 0x08
INTMS = 0x0C
INTMC = 0x10
CC = 0x14
CSTS = 0x1C
NSSR = 0x20
AQA = 0x24
ASQ = 0x28
ACQ = 0x30
CRTO = 0x68
DOORBELLS = 0x1000

ALL_ONES_32 = 0xFFFFFFFF
ALL_ONES_64 = 0xFFFFFFFFFFFFFFFF

CC_EN = 1
CC_CSS_NVM = 0 << 4
CC_CSS_ALL = 6 << 4
CC_SHN_MASK = 3 << 14
CC_SHN_NORMAL = 1 << 14
CC_SHN_ABRUPT = 2 << 14
CC_IOSQES = 6 << 16  # 2^6 = 64-byte submission entries
CC_IOCQES = 4 << 20  # 2^4 = 16-byte completion entries

CSTS_RDY = 1
CSTS_CFS = 1 << 1
CSTS_SHST_MASK = 3 << 2
CSTS_SHST_COMPLETE = 2 << 2
CSTS_NSSRO = 1 << 4
CSTS_PP = 1 << 5


@dataclass(frozen=True)
class Capabilities:
    """CAP, decoded: sizes in bytes, entries as counts (the register's are 0-based)."""

    raw: int
    max_queue_entries: int
    contiguous_queues: bool
    timeout_ms: int
    doorbell_stride_bytes: int
    nvm_command_set: bool
    all_command_sets: bool
    min_page_bytes: int
    max_page_bytes: int
    ready_timeouts: bool

    @classmethod
    def parse(cls, raw: int) -> Capabilities:
        css = raw >> 37 & 0xFF
        return cls(
            raw=raw,
            max_queue_entries=(raw & 0xFFFF) + 1,
            contiguous_queues=bool(raw >> 16 & 1),
            timeout_ms=max(raw >> 24 & 0xFF, 1) * 500,
            doorbell_stride_bytes=4 << (raw >> 32 & 0xF),
            nvm_command_set=bool(css & 1),
            all_command_sets=bool(css & 0x40),
            min_page_bytes=1 << (12 + (raw >> 48 & 0xF)),
            max_page_bytes=1 << (12 + (raw >> 52 & 0xF)),
            ready_timeouts=bool(raw >> 59 & 3),
        )

    def sq_doorbell(self, qid: int) -> int:
        """Offset in BAR0 of a submission queue's tail doorbell."""
        return DOORBELLS + 2 * qid * self.doorbell_stride_bytes

    def cq_doorbell(self, qid: int) -> int:
        """Offset in BAR0 of a completion queue's head doorbell."""
        return DOORBELLS + (2 * qid + 1) * self.doorbell_stride_bytes


def version_text(vs: int) -> str:
    """VS as people write it: 1.4.0."""
    return f"{vs >> 16}.{vs >> 8 & 0xFF}.{vs & 0xFF}"
