"""The places by which filesystems, volumes and partition tables are recognised.

Below: nothing.  Above: probe.py (looks there), write.py (leaves nothing there).

Nearly all stand in the first 4 MiB or the last 2 MiB, which mkfs.nvmefs wipes as a whole; FAR_MAGICS are
the copies elsewhere by which a tool of theirs would bring the old filesystem back (btrfs rescue
super-recover, cryptsetup repair). A block that holds one is wiped.
"""

from __future__ import annotations

from collections.abc import Sequence

HEAD_BLOCKS = 1024  # 4 MiB
TAIL_BLOCKS = 512  # 2 MiB
MBR_MAGIC = 510

# name, places from the start, bytes there
MAGICS: Sequence[tuple[str, Sequence[int], bytes]] = [
    ("ext2/ext3/ext4", (0x438,), b"\x53\xef"),
    ("XFS", (0,), b"XFSB"),
    ("btrfs", (0x10040,), b"_BHRfS_M"),
    ("F2FS", (0x400,), b"\x10\x20\xf5\xf2"),
    ("bcachefs or bcache", (0x1018,), b"\xc6\x85\x73\xf6"),
    ("ZFS", range(0x20000, 0x40000, 0x400), b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("ZFS", range(0x20000, 0x40000, 0x400), b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    ("swap", (4086, 8182, 16374, 65526), b"SWAPSPACE2"),
    ("swap", (4086, 8182, 16374, 65526), b"SWAP-SPACE"),
    ("LUKS", (0,), b"LUKS\xba\xbe"),
    ("LUKS, its second header", [0x4000 << shift for shift in range(8)], b"SKUL\xba\xbe"),
    ("LVM physical volume", (0x18, 0x218, 0x418, 0x618), b"LVM2 001"),
    ("md RAID member", (0, 0x1000), b"\xfc\x4e\x2b\xa9"),
    ("NTFS", (3,), b"NTFS    "),
    ("exFAT", (3,), b"EXFAT   "),
    ("BitLocker", (3,), b"-FVE-FS-"),
    ("FAT", (0x36,), b"FAT12   "),
    ("FAT", (0x36,), b"FAT16   "),
    ("FAT", (0x52,), b"FAT32   "),
    ("JFS", (0x8000,), b"JFS1"),
    ("ReiserFS", (0x2034, 0x10034), b"ReIsEr"),
    ("NILFS2", (0x406,), b"\x34\x34"),
    ("EROFS", (0x400,), b"\xe2\xe1\xf5\xe0"),
    ("SquashFS", (0,), b"hsqs"),
    ("ISO 9660", (0x8001,), b"CD001"),
    ("HFS+", (0x400,), b"H+"),
    ("HFS+", (0x400,), b"HX"),
    ("APFS", (0x20,), b"NXSB"),
    ("Ceph BlueStore", (0,), b"bluestore block device\n"),
    ("VDO", (0,), b"dmvdo001"),
    ("Stratis", (0x204, 0x1204), b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("GPT partition table", (0x200, 0x1000), b"EFI PART"),
    ("gzip archive", (0,), b"\x1f\x8b\x08"),
    ("tar archive", (0x101,), b"ustar"),
    ("qcow2 image", (0,), b"QFI\xfb"),
    ("VMDK image", (0,), b"KDMV"),
    ("SQLite database", (0,), b"SQLite format 3\0"),
]
# name, places from the end, bytes there
END_MAGICS: Sequence[tuple[str, Sequence[int], bytes]] = [
    ("GPT partition table (backup)", (512, 4096), b"EFI PART"),
    ("md RAID member", range(0x2000, 0x21000, 0x1000), b"\xfc\x4e\x2b\xa9"),
    ("DRBD", (0xFC4,), b"\x83\x74\x02\x67"),
]
# name, place from the start, bytes there
FAR_MAGICS: Sequence[tuple[str, int, bytes]] = [
    ("LUKS, its second header", 4 << 20, b"SKUL\xba\xbe"),
    ("btrfs, its second superblock", (64 << 20) + 0x40, b"_BHRfS_M"),
    ("btrfs, its third superblock", (256 << 30) + 0x40, b"_BHRfS_M"),
]
