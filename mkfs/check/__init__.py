"""What fsck looks at, pass by pass. Each pass adds findings; none writes.

load.py       superblock by majority, journal replayed in memory, state
scan.py       the walk over the tree: every node, every item
acls.py       access control lists
items.py      what single inodes must fulfil, and the compact record of the rest
space.py      which blocks the tree claims
verify.py     links, parents, orphans, counters, bitmaps: what is only known when all was seen
run.py        all of it, in order
explain.py    names and owners for findings, looked up again when something is wrong
"""
