"""The offline tools: make a filesystem, check one. They share `nvmefs`' layout and know no FUSE.

mkfs.py   mkfs.nvmefs: parse, open, probe, calculate, show, test, write
fsck.py   fsck.nvmefs: superblock, journal, scan, verify
"""
