"""Rules that make the embedded controller misbehave, in words. faults.c says what they do.

    io:write nth=3 status=0x281 dnr         the third write fails, for good
    q1:read p=0.01 delay=5ms                one read in a hundred on queue 1 takes 5 ms longer
    admin:identify select=1 flip=77:ff      all bits of MDTS are others than they were
    enable nth=2 never                      after the first reset the controller does not come back
    controller mqes=1 grant=0/7             queues of two entries, one submission queue granted

A rule is a subject, then conditions, then actions, in any order and separated by spaces. Numbers are
decimal or 0x; a rule without a condition hits every command of its subject.

    subject     any, admin, io or qN (queue N), with ":OPCODE" (a name, see OPCODES, or a number)
                enable, reset, shutdown: CSTS.RDY follows CC.EN = 1 or 0, CSTS.SHST follows CC.SHN
                controller: what it claims to be; it has fields instead of conditions and actions
    conditions  nth=N  every=N  limit=N (at most so often)  p=PROBABILITY
                lba=FIRST or lba=FIRST-LAST (commands that name one of these blocks)
                select=N (low byte of dword 10: CNS, log page, feature)
    actions     drop  mute  lost  delay=TIME (ns, us, ms, s)  never  behind=COMMANDS
                status=N (type << 8 | code)  dnr  crd=N  executed  duplicate[=TIMES]
                cid=N  cid=^N  cid=stale  sqid=N  sqhead=N  result=N  stale-phase  quiet  spurious
                event=N  fatal  gone  rot  misdirect=BLOCKS  patch=OFFSET:HEX  flip=OFFSET:HEX
    fields      mqes=N  to=N  dstrd=N  css=N  mpsmin=N  mpsmax=N (of CAP, as they stand there)
                mdts=N  grant=N or grant=SQ/CQ (as the registers and completions say it: zero-based)
                vectors=N
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from driver.embedded._controller import lib
from driver.errors import DriverError

__all__ = ["OPCODES", "FaultPlan", "FaultRule", "FaultSyntaxError", "parse_faults"]

OPCODES = {
    "admin": {
        "delete_sq": 0x00,
        "create_sq": 0x01,
        "get_log": 0x02,
        "delete_cq": 0x04,
        "create_cq": 0x05,
        "identify": 0x06,
        "abort": 0x08,
        "set_features": 0x09,
        "get_features": 0x0A,
        "async_event": 0x0C,
        "keep_alive": 0x18,
        "doorbell_buffer": 0x7C,
        "format": 0x80,
    },
    "io": {
        "flush": 0x00,
        "write": 0x01,
        "read": 0x02,
        "compare": 0x05,
        "write_zeroes": 0x08,
        "dataset_management": 0x09,
        "verify": 0x0C,
        "copy": 0x19,
    },
}
"""Names of opcodes, for admin and for I/O queues."""

NEVER = (1 << 64) - 1
_PATCH_BYTES = 64
_TIMES = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000}
_TRANSITIONS = {
    "enable": lib.FAULT_ENABLE,
    "reset": lib.FAULT_RESET,
    "shutdown": lib.FAULT_SHUTDOWN,
}
_QUEUES = {"any": lib.FAULT_ANY_QUEUE, "io": lib.FAULT_IO_QUEUES, "admin": 0}
_FLAGS = {
    "drop": lib.FAULT_DROP,
    "mute": lib.FAULT_MUTE,
    "lost": lib.FAULT_LOST,
    "executed": lib.FAULT_EXECUTED,
    "stale-phase": lib.FAULT_STALE_PHASE,
    "quiet": lib.FAULT_QUIET,
    "spurious": lib.FAULT_SPURIOUS,
    "fatal": lib.FAULT_FATAL,
    "gone": lib.FAULT_GONE,
    "rot": lib.FAULT_ROT,
}
# field of the rule, its largest value, action
_NUMBERS: dict[str, tuple[str, int, int]] = {
    "nth": ("nth", NEVER, 0),
    "every": ("every", NEVER, 0),
    "limit": ("limit", NEVER, 0),
    "select": ("selector", 0xFF, 0),
    "behind": ("behind", 0xFFFFFFFF, lib.FAULT_BEHIND),
    "duplicate": ("copies", 0xFFFF, lib.FAULT_DUPLICATE),
    "sqid": ("sq_id", 0xFFFF, lib.FAULT_SQ_ID),
    "sqhead": ("sq_head", 0xFFFF, lib.FAULT_SQ_HEAD),
    "result": ("result", 0xFFFFFFFF, lib.FAULT_RESULT),
    "event": ("event", 0xFFFFFF, lib.FAULT_EVENT),
    "misdirect": ("blocks", NEVER, lib.FAULT_MISDIRECT),
}
# field of CAP: lowest bit, bits
_CAP = {
    "mqes": (0, 16),
    "to": (24, 8),
    "dstrd": (32, 4),
    "css": (37, 8),
    "mpsmin": (48, 4),
    "mpsmax": (52, 4),
}


class FaultSyntaxError(DriverError, ValueError):
    """A rule that cannot be understood; the message quotes it and says what is possible."""


@dataclass(frozen=True)
class FaultRule:
    """struct fault_rule of faults.h, field by field."""

    queue: int
    opcode: int = -1
    selector: int = -1
    first_lba: int = 0
    last_lba: int = NEVER
    nth: int = 0
    every: int = 0
    limit: int = 0
    probability: int = 0
    actions: int = 0
    delay_ns: int = 0
    behind: int = 0
    copies: int = 0
    status: int = 0
    cid: int = 0
    sq_id: int = 0
    sq_head: int = 0
    result: int = 0
    event: int = 0
    blocks: int = 0
    patch_offset: int = 0
    patch: bytes = b""


@dataclass(frozen=True)
class FaultPlan:
    """What a controller is told to do wrong: rules, and the seed of all chance in them."""

    rules: tuple[FaultRule, ...] = ()
    seed: int = 0
    cap_mask: int = 0
    cap_value: int = 0
    vectors: int | None = None
    """Interrupt vectors that the controller claims to have; None: as many as there are."""


def parse_faults(texts: Sequence[str], seed: int = 0) -> FaultPlan:
    """The plan that these rules make, tried in this order. Raises FaultSyntaxError."""
    plan = FaultPlan(seed=seed & NEVER)
    for text in texts:
        words = text.split()
        if not words:
            raise FaultSyntaxError(f"fault {text!r}: a rule begins with a subject: io, admin, ...")
        if words[0] == "controller":
            plan = _claims(text, words[1:], plan)
        else:
            plan = replace(plan, rules=(*plan.rules, _rule(text, words)))
    return plan


def _rule(text: str, words: list[str]) -> FaultRule:
    rule = _subject(text, words[0])
    for word in words[1:]:
        name, equals, value = word.partition("=")
        rule = _word(text, rule, name, value if equals else None)
    if rule.status and not rule.actions & lib.FAULT_STATUS:
        raise FaultSyntaxError(f"fault {text!r}: dnr and crd belong to a status: add status=N")
    if not rule.actions:
        raise FaultSyntaxError(f"fault {text!r}: no action: add drop, delay=5ms, status=0x281, ...")
    waits = lib.FAULT_DELAY | lib.FAULT_FATAL | lib.FAULT_GONE
    if rule.queue in _TRANSITIONS.values() and rule.actions & ~waits:
        raise FaultSyntaxError(
            f"fault {text!r}: enable, reset and shutdown know delay=, never, fatal and gone only"
        )
    return rule


def _subject(text: str, word: str) -> FaultRule:
    if word in _TRANSITIONS:
        return FaultRule(_TRANSITIONS[word])
    queue, colon, opcode = word.partition(":")
    kind = "admin" if queue in ("admin", "q0") else "io"
    if queue in _QUEUES:
        rule = FaultRule(_QUEUES[queue])
    elif queue[:1] == "q" and queue[1:].isdecimal():
        rule = FaultRule(_number(text, queue[1:], 0xFFFF))
    else:
        raise FaultSyntaxError(
            f"fault {text!r}: {word!r} is no subject: any, admin, io, qN (with :OPCODE), enable, "
            "reset, shutdown, controller"
        )
    if not colon:
        return rule
    if opcode in OPCODES[kind] and queue != "any":
        return replace(rule, opcode=OPCODES[kind][opcode])
    if not opcode[:1].isdecimal():
        raise FaultSyntaxError(
            f"fault {text!r}: {opcode!r} is no opcode: a number, or of admin and I/O queues "
            + ", ".join([*OPCODES["admin"], *OPCODES["io"]])
        )
    return replace(rule, opcode=_number(text, opcode, 0xFF))


def _word(text: str, rule: FaultRule, name: str, value: str | None) -> FaultRule:
    """The rule with one more condition or action."""
    if name in _FLAGS and value is None:
        return replace(rule, actions=rule.actions | _FLAGS[name])
    if name == "duplicate" and value is None:
        value = "1"
    if name in _NUMBERS and value is not None:
        what, most, action = _NUMBERS[name]
        number = _number(text, value, most)
        if number < 1 and name in ("nth", "every", "limit"):
            raise FaultSyntaxError(f"fault {text!r}: {name} counts from 1")
        return replace(rule, actions=rule.actions | action, **{what: number})  # type: ignore[arg-type]
    reader = _WORDS.get(name)
    if reader is None or (value is None) != (name in ("dnr", "never")):
        raise FaultSyntaxError(f"fault {text!r}: {name!r} is no condition or action, or lacks =")
    return reader(text, rule, value or "")


def _number(text: str, value: str, most: int) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        raise FaultSyntaxError(f"fault {text!r}: {value!r} is not a number") from None
    if not 0 <= number <= most:
        raise FaultSyntaxError(f"fault {text!r}: {value} is outside 0 to {most:#x}")
    return number


def _probability(text: str, rule: FaultRule, value: str) -> FaultRule:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise FaultSyntaxError(f"fault {text!r}: p={value}: a probability is above 0, at most 1")
    return replace(rule, probability=0 if share == 1 else max(1, int(share * (1 << 32))))


def _blocks(text: str, rule: FaultRule, value: str) -> FaultRule:
    first, dash, last = value.partition("-")
    low = _number(text, first, NEVER)
    return replace(
        rule,
        first_lba=low,
        last_lba=_number(text, last, NEVER - 1) if dash else min(low, NEVER - 1),
    )


def _delay(text: str, rule: FaultRule, value: str) -> FaultRule:
    unit = value.lstrip("0123456789.")
    try:
        delay_ns = int(float(value.removesuffix(unit)) * _TIMES[unit])
    except (KeyError, ValueError):
        raise FaultSyntaxError(f"fault {text!r}: delay={value}: as in 20us, 5ms, 1s") from None
    return replace(rule, actions=rule.actions | lib.FAULT_DELAY, delay_ns=delay_ns)


def _status(text: str, rule: FaultRule, value: str) -> FaultRule:
    return replace(
        rule,
        actions=rule.actions | lib.FAULT_STATUS,
        status=rule.status | _number(text, value, 0x7FF),
    )


def _cid(text: str, rule: FaultRule, value: str) -> FaultRule:
    if value == "stale":
        return replace(rule, actions=rule.actions | lib.FAULT_CID_STALE)
    action = lib.FAULT_CID_FLIP if value.startswith("^") else lib.FAULT_CID
    cid = _number(text, value.removeprefix("^"), 0xFFFF)
    return replace(rule, actions=rule.actions | action, cid=cid)


def _bytes(action: int) -> Callable[[str, FaultRule, str], FaultRule]:
    def reader(text: str, rule: FaultRule, value: str) -> FaultRule:
        offset, _, digits = value.partition(":")
        try:
            patch = bytes.fromhex(digits)
        except ValueError:
            patch = b""
        if not 1 <= len(patch) <= _PATCH_BYTES:
            raise FaultSyntaxError(
                f"fault {text!r}: {value!r} is not OFFSET:HEX with 1 to {_PATCH_BYTES} bytes"
            )
        place = _number(text, offset, 0xFFFFFFFF)
        return replace(rule, actions=rule.actions | action, patch_offset=place, patch=patch)

    return reader


_WORDS: dict[str, Callable[[str, FaultRule, str], FaultRule]] = {
    "p": _probability,
    "lba": _blocks,
    "delay": _delay,
    "never": lambda _text, rule, _value: replace(
        rule, actions=rule.actions | lib.FAULT_DELAY, delay_ns=NEVER
    ),
    "status": _status,
    "dnr": lambda _text, rule, _value: replace(rule, status=rule.status | 0x4000),
    "crd": lambda text, rule, value: replace(
        rule, status=rule.status | _number(text, value, 3) << 11
    ),
    "cid": _cid,
    "patch": _bytes(lib.FAULT_PATCH),
    "flip": _bytes(lib.FAULT_FLIP),
}


# ---- what the controller claims to be ------------------------------------------------------------


def _claims(text: str, words: list[str], plan: FaultPlan) -> FaultPlan:
    if not words:
        raise FaultSyntaxError(f"fault {text!r}: no field: mqes, mdts, grant, vectors, to, ...")
    for word in words:
        name, _, value = word.partition("=")
        if name in _CAP:
            low, bits = _CAP[name]
            number = _number(text, value, (1 << bits) - 1)
            mask = (1 << bits) - 1 << low
            cap_value = plan.cap_value & ~mask | number << low
            plan = replace(plan, cap_mask=plan.cap_mask | mask, cap_value=cap_value)
        elif name == "vectors":
            plan = replace(plan, vectors=_number(text, value, 0xFFFF))
        elif name == "mdts":
            rule = _rule(
                text, ["admin:identify", "select=1", f"patch=77:{_number(text, value, 255):02x}"]
            )
            plan = replace(plan, rules=(*plan.rules, rule))
        elif name == "grant":
            sq, _, cq = value.partition("/")
            granted = _number(text, sq, 0xFFFF) | _number(text, cq or sq, 0xFFFF) << 16
            rule = _rule(text, ["admin:set_features", "select=7", f"result={granted}"])
            plan = replace(plan, rules=(*plan.rules, rule))
        else:
            known = ", ".join([*_CAP, "mdts", "grant", "vectors"])
            raise FaultSyntaxError(f"fault {text!r}: {name!r} is none of {known}")
    return plan
