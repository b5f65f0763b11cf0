"""Bytes kept in the tree: small files, symlink targets, long attribute values.

Below: the item tree.  Above: file.py, xattrs.py, filesystem.py.

A sequence of INLINE items of at most INLINE_BYTES each, offset = the number of the piece. Being in the tree
they change with the transaction that changes them: no data block, no read beside the inode's own leaf.
"""

from __future__ import annotations

from nvmefs.errors import Corrupted
from nvmefs.layout import INLINE_BYTES, MAX_XATTR_BYTES, Kind, key
from nvmefs.transaction import Transaction
from nvmefs.tree import Tree

MAX_PIECES = -(-MAX_XATTR_BYTES // INLINE_BYTES)


def read_inline(tree: Tree, tx: Transaction, number: int, length: int) -> bytes:
    """The `length` bytes kept for `number`. Raises Corrupted when there are fewer or more."""
    pieces = []
    for index in range(-(-length // INLINE_BYTES)):
        piece = tree.get(tx, key(number, Kind.INLINE, index))
        if piece is None:
            raise Corrupted(-1, f"inode {number}: piece {index} of its inline data is missing")
        pieces.append(piece)
    data = b"".join(pieces)
    if len(data) != length:
        raise Corrupted(-1, f"inode {number}: {len(data)} inline bytes instead of {length}")
    return data


def write_inline(tree: Tree, tx: Transaction, number: int, data: bytes) -> None:
    """Keep `data` for `number`, which has none or no more pieces than `data` needs. Raises NoSpace."""
    for index in range(-(-len(data) // INLINE_BYTES)):
        piece = data[index * INLINE_BYTES : (index + 1) * INLINE_BYTES]
        tree.put(tx, key(number, Kind.INLINE, index), piece)


def delete_inline(tree: Tree, tx: Transaction, number: int) -> None:
    """Forget what is kept for `number`."""
    tree.delete_range(
        tx, key(number, Kind.INLINE), key(number, Kind.INLINE, MAX_PIECES), MAX_PIECES + 1
    )
