"""Images that somebody has damaged, by chance or on purpose: mount, walk, check, repair.

images.py      the filesystems that are damaged
mutations.py   what is done to them, by a seed
examine.py     what each must survive
campaign.py    many of them (`make hostile`)
corpus/        one image for each bug that was found, with its checksums as the bug needed them
"""
