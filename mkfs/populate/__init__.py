"""Filling a new filesystem with files while it is made.

source.py      what a source gives: entries, in an order that does not depend on the host
directory.py   a directory of the host
archive.py     a tar archive; acltext.py reads the access lists in it
fill.py        entries into the filesystem, by its own operations
bulk.py        batches of changes written without a journal, for a filesystem that nobody can find yet

with open_source("tree.tar.gz") as source:                         raises ToolError, OSError
    filled = await fill(device, superblock, state, source, born)
"""

from __future__ import annotations

import os

from mkfs.populate.archive import ArchiveSource
from mkfs.populate.directory import DirectorySource
from mkfs.populate.source import Source


def open_source(name: str, image: str | None = None) -> Source:
    """The source that a user names: a directory, an archive, or '-' for an archive on standard input.

    `image` is the path of the image that is made: it cannot be part of its own contents.
    """
    if name != "-" and os.path.isdir(name):
        status = os.stat(image) if image is not None else None
        return DirectorySource(name, (status.st_dev, status.st_ino) if status else None)
    return ArchiveSource(name)
