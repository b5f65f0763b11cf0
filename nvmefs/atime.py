"""Access times, by the mount's policy: relatime, noatime or strictatime (mount(8)).

Below: inodes.py.  Above: filesystem.py.
"""

from __future__ import annotations

from nvmefs.clock import Timestamp, now
from nvmefs.inodes import Inode, Inodes
from nvmefs.transaction import Transaction, Transactions

DAY_S = 86400


class AccessTimes:
    """When files were last read."""

    def __init__(self, inodes: Inodes, transactions: Transactions, policy: str) -> None:
        self.inodes = inodes
        self.transactions = transactions
        self.policy = policy

    async def read(self, number: int) -> None:
        """The file, directory or link has been read just now."""
        if self.policy == "noatime":
            return
        inode = await self.transactions.read(lambda tx: self.inodes.get(tx, number))
        when = now()
        if self._is_due(inode, when):
            await self.transactions.run(lambda tx: self._set(tx, number, when))

    def _is_due(self, inode: Inode, when: Timestamp) -> bool:
        if self.policy != "relatime":
            return True
        newest = max((inode.mtime_s, inode.mtime_ns), (inode.ctime_s, inode.ctime_ns))
        return (inode.atime_s, inode.atime_ns) <= newest or when[0] - inode.atime_s >= DAY_S

    def _set(self, tx: Transaction, number: int, when: Timestamp) -> None:
        inode = self.inodes.get(tx, number)
        tx.touch(inode)
        inode.atime_s, inode.atime_ns = when
