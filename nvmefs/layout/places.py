"""Where everything is: the fixed blocks, groups, the journal's ring; and the limits of the format.

Below: nothing.  Above: all of layout.
"""

from __future__ import annotations

BLOCK_BYTES = 4096

GROUP_BLOCKS = 32256  # (4096 - 64) * 8 bits: what one bitmap block describes, 126 MiB
GROUP_ALIGNMENT = GROUP_BLOCKS & -GROUP_BLOCKS  # what every group begins at a multiple of: 2 MiB
SUPERBLOCK = 16
STATE_BLOCK = 17
JOURNAL_SUPER_A = 18
JOURNAL_SUPER_B = 19
FIRST_BITMAP = 20
JOURNAL_START = 21
SUPERBLOCK_COPY = GROUP_BLOCKS + 1  # in group 1, after its bitmap; another is the last block
MIN_LAST_GROUP_BLOCKS = 64  # a shorter tail of the device is left unused
MIN_JOURNAL_BLOCKS = 1024
SHORT_JOURNAL_BLOCKS = GROUP_BLOCKS - 64  # the most that group 0 holds; a longer one is a feature
MAX_JOURNAL_BLOCKS = 262144  # 1 GiB
MIN_BLOCKS = 4096  # 16 MiB
MAX_BLOCKS = 2**48

MAX_FILE_BYTES = 2**63 - 1
MAX_LINKS = 2**31 - 1
MAX_NAME_BYTES = 255
MAX_SYMLINK_BYTES = 4095
MAX_XATTR_BYTES = 65536
ROOT_INODE = 1
FIRST_FREE_INODE = 16
MAX_INODE = 2**56 - 1


def group_of(block: int) -> int:
    """The number of the group that holds `block`."""
    return block // GROUP_BLOCKS


def bitmap_block(group: int) -> int:
    """The block that holds the bitmap of `group`."""
    return FIRST_BITMAP if group == 0 else group * GROUP_BLOCKS


def group_count(block_count: int) -> int:
    """How many groups a filesystem of `block_count` blocks has."""
    return -(-block_count // GROUP_BLOCKS)


def usable_blocks(device_blocks: int) -> int:
    """The blocks of a device that a filesystem uses: a last group too short to serve is left out."""
    tail = device_blocks % GROUP_BLOCKS
    if device_blocks > GROUP_BLOCKS and 0 < tail < MIN_LAST_GROUP_BLOCKS:
        return device_blocks - tail
    return device_blocks


def superblock_places(block_count: int) -> list[int]:
    """The superblock and its copies, in the order in which they are tried."""
    places = [SUPERBLOCK]
    if block_count > SUPERBLOCK_COPY + 1:
        places.append(SUPERBLOCK_COPY)
    places.append(block_count - 1)
    return places


def journal_block(position: int) -> int:
    """The block of a position in the journal, counted from 0, which steps over the fixed blocks of groups."""
    if position < GROUP_BLOCKS - JOURNAL_START:
        return JOURNAL_START + position
    position -= GROUP_BLOCKS - JOURNAL_START
    if position < GROUP_BLOCKS - 2:  # of group 1 without its bitmap and the superblock's copy
        return SUPERBLOCK_COPY + 1 + position
    group, index = divmod(position - (GROUP_BLOCKS - 2), GROUP_BLOCKS - 1)
    return (group + 2) * GROUP_BLOCKS + 1 + index
