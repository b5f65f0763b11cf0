"""The hashes under which names stand in the tree: SipHash-2-4, keyed by the filesystem's seed.

Below: core/siphash.c.  Above: directories and xattrs.

The key makes them unpredictable, so that nobody can choose names that all fall on one item.
"""

from __future__ import annotations

from nvmefs._core import lib

SEED_BYTES = 16


def name_hash(seed: bytes, name: bytes) -> int:
    """The 56-bit hash of a name, never 0. `seed` has 16 bytes; raises ValueError otherwise."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a hash seed of {len(seed)} bytes")
    return lib.siphash(seed, name, len(name)) >> 8 or 1


def parent_hash(seed: bytes, parent: int, name: bytes) -> int:
    """The 56-bit hash of `name` in directory `parent` (an inode number), never 0.

    `seed` has 16 bytes; raises ValueError otherwise.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a hash seed of {len(seed)} bytes")
    return lib.siphash_prefixed(seed, parent, name, len(name)) >> 8 or 1
