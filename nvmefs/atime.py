"""Access times, by the mount's policy: relatime, noatime or strictatime (mount(8)).

Below: inodes.py.  Above: filesystem.py.

    await access_times.read(17)              inode 17 is being read
    access_times.served(17, ns)              the front end has read it, without telling at once (dataplane.py)

The kernel sets no access times of FUSE files, but it asks for attributes anew after each read that it has sent.
"""

from __future__ import annotations

from functools import partial

from nvmefs.clock import Timestamp, now
from nvmefs.errors import FsError
from nvmefs.inodes import Inode, Inodes
from nvmefs.transaction import Transaction, Transactions

DAY_S = 86400
NS = 1_000_000_000
TICK_NS = 10_000_000  # by so much two clocks may differ: the one that C reads, and the one that stamps files


class AccessTimes:
    """When files were last read. `unsaved` are times that could not be set without waiting."""

    def __init__(self, inodes: Inodes, transactions: Transactions, policy: str) -> None:
        self.inodes = inodes
        self.transactions = transactions
        self.policy = policy
        self.unsaved: dict[int, Timestamp] = {}

    async def read(self, number: int) -> None:
        """The file, directory or link has been read just now."""
        if self.policy == "noatime":
            return
        inode = await self.transactions.read(lambda tx: self.inodes.get(tx, number))
        when = now()
        if self._is_due(inode, when):
            await self.transactions.run(lambda tx: self._set(tx, number, when))

    def served(self, number: int, ns: int) -> bool:
        """The file was read at `ns`. False: its time is set later, because now it would mean to wait."""
        when = min(divmod(ns, NS), now())
        inode = self.inodes.known.get(number)
        if self.policy == "noatime" or (inode is not None and not self._is_due(inode, when)):
            return True
        done = self.transactions.run_now(partial(self._set_if_due, number=number, when=when))
        if not done:
            self.unsaved[number] = when
        return done

    async def save(self) -> None:
        """Set the times that are not set yet. Raises what operations raise."""
        while self.unsaved:
            number, when = self.unsaved.popitem()
            await self.transactions.run(partial(self._set_if_due, number=number, when=when))

    def _is_due(self, inode: Inode, when: Timestamp) -> bool:
        if self.policy != "relatime":
            return True
        atime = (inode.atime_s, inode.atime_ns)
        return atime <= _last_change(inode) or when[0] - inode.atime_s >= DAY_S

    def _set_if_due(self, tx: Transaction, number: int, when: Timestamp) -> None:
        """Operation: of a file that may have changed since, or be gone."""
        try:
            inode = self.inodes.get(tx, number)
        except FsError:
            return
        if self._is_due(inode, when):
            changed = _last_change(inode)
            late = (changed[0] - when[0]) * NS + changed[1] - when[1]
            self._set(tx, number, changed if 0 < late < TICK_NS else when)

    def _set(self, tx: Transaction, number: int, when: Timestamp) -> None:
        inode = self.inodes.get(tx, number)
        tx.touch(inode)
        inode.atime_s, inode.atime_ns = when


def _last_change(inode: Inode) -> Timestamp:
    return max((inode.mtime_s, inode.mtime_ns), (inode.ctime_s, inode.ctime_ns))
