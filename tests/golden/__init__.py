"""Images that were made once and must be readable for ever, each with what it holds.

    NAME.img.xz      the image
    NAME.json.xz     its tree, as tests/reader.py and the filesystem told it when it was made

`python -m tests.golden.make NAME` adds one, when the format has grown; those that are here are never made
again: they are what older versions have left on people's drives.
"""
