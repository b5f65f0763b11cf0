"""The metadata of a filesystem without its names and contents: nvmefs image --obscure.

names.py    a keyed permutation of the names of each length
items.py    the items of one inode, obscured
image.py    the blocks: the tree written anew, the others by field

    blocks = await obscure(device, descriptor, secrets.token_bytes(32))
"""
