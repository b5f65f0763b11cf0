"""What fsck changes, finding by finding.

engine.py      check, repair the most basic of what was found, check again, until nothing is found
policy.py      which repairs are done: none, the safe ones, all, or what the user says
writer.py      the filesystem opened for repairs: journal, bitmaps, tree
fixes.py       the repair for each finding's name, and in which order
items.py       single items: values, lists under hashes, data of an inode
names.py       names, back references, orphans, lost+found
space.py       blocks that two have; bitmaps
structure.py   superblocks, journal, state, and a new tree over the leaves that are sound
salvage.py     the search for leaves that nothing leads to

Every change is a transaction of the filesystem's own journal, or goes to blocks that nothing refers to as yet.
So a crash leaves what a later check finds and repairs.
"""
