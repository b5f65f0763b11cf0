"""A keyed permutation of the byte strings of each length: names without meaning, and no two of them become one.

Below: nothing.  Above: items.py.

    names = Permutation(key, NAME_BYTES, excluded=(b".", b".."))
    names(b"report.txt")                    ten bytes of NAME_BYTES; the same for the same name and key

A Feistel network over the two halves of a name, each byte a digit to the base of the alphabet: encryption that
keeps the format, in the manner of FF1 (NIST SP 800-38G), with SHAKE-256 as the round function. What is excluded
maps to itself: where a step ends there, the next step is taken (cycle walking), so that the rest is permuted. A
string of a single byte has no halves: a shuffled alphabet takes its place. What stays visible is how long names
are, and which are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache

ROUNDS = 10
REMEMBERED = 1 << 16  # a name is met twice: in its directory, and as a back reference
NAME_BYTES = bytes(byte for byte in range(1, 256) if byte != ord("/"))


class Permutation:
    """Strings of bytes of `alphabet`, of one length each, to strings of the same length.

    Those that are `excluded` map to themselves.
    """

    def __init__(self, key: bytes, alphabet: bytes, excluded: Collection[bytes] = ()) -> None:
        self.key = key
        self.alphabet = alphabet
        self.excluded = frozenset(excluded)
        self.to_digits = bytes(alphabet.find(byte) & 0xFF for byte in range(256))
        self.to_bytes = alphabet + bytes(256 - len(alphabet))
        order = sorted(
            range(len(alphabet)), key=lambda digit: self.stream(0, 1, bytes((digit,)), 16)
        )
        self.shuffled = bytes(order)
        self.remembered = lru_cache(REMEMBERED)(self.permute)

    def __call__(self, text: bytes) -> bytes:
        """What `text` becomes. Raises ValueError if a byte is not of the alphabet."""
        return self.remembered(text)

    def permute(self, text: bytes) -> bytes:
        if text.translate(None, self.alphabet):
            raise ValueError(f"{text!r} has bytes that are not of the alphabet")
        if not text or text in self.excluded:
            return text
        digits = text.translate(self.to_digits)
        while True:
            digits = self.step(digits)
            result = digits.translate(self.to_bytes)
            if result not in self.excluded:
                return result

    def step(self, digits: bytes) -> bytes:
        """One walk through the network."""
        length, base = len(digits), len(self.alphabet)
        if length == 1:
            return self.shuffled[digits[0] : digits[0] + 1]
        left, right = digits[: length // 2], digits[length // 2 :]
        for index in range(ROUNDS):
            added = self.stream(index, length, right, len(left))
            mixed = bytes((a + b) % base for a, b in zip(left, added, strict=True))
            left, right = right, mixed
        return left + right

    def stream(self, index: int, length: int, half: bytes, count: int) -> bytes:
        """`count` bytes that only who has the key can tell, for round `index` of a string of this length."""
        place = bytes((index,)) + length.to_bytes(2, "little")
        return hashlib.shake_256(self.key + place + half).digest(count)
