"""The part of the build that pyproject.toml cannot say: extension modules made by cffi.

cffi compiles against Python's stable interface, so that one wheel serves every Python from 3.10 on.
"""

from __future__ import annotations

from setuptools import setup

setup(
    cffi_modules=[
        "driver/_build.py:ffi",
        "driver/embedded/_build.py:ffi",
        "nvmefs/_build.py:ffi",
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
