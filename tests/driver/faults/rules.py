"""The faults that the campaign deals out: actions, opcodes, and what they make of a controller."""

from __future__ import annotations

import random

from driver.embedded.faults import OPCODES

# What a driver must live with, and its data with it.
ACTIONS = [
    "drop",
    "mute",
    "never",
    "delay=2ms",
    "delay=30ms",
    "behind=1",
    "behind=4",
    "duplicate",
    "duplicate=3",
    "cid=0xffff",
    "cid=0x1fff",
    "cid=^0x1000",
    "cid=^0xf000",
    "cid=stale",
    "stale-phase",
    "sqid=0",
    "sqid=77",
    "sqhead=0xffff",
    "sqhead=1",
    "quiet",
    "spurious",
    "status=0x04",
    "status=0x06",
    "status=0x06 dnr",
    "status=0x07",
    "status=0x08 executed",
    "status=0x21",
    "status=0x280",
    "status=0x280 executed",
    "status=0x281 dnr",
    "status=0x371 crd=1",
    "status=0x22 crd=3",
    "status=0x7ff",
    "status=0x82 crd=2 executed",
    "event=0x010000",
    "event=0x020001",
    "event=0x040002",
    "event=0xffffff",
    "event=0xab07",
    "fatal",
    "gone",
]
# Lies: no driver can see them, so nothing is said about the data behind them.
LIES = ["lost", "rot", "misdirect=3", "flip=0:01", "patch=4:ffffffff", "result=0xffffffff"]

# Faults that matter together.
TOGETHER = [
    ("admin:abort lost", "io nth=2 delay=35ms"),
    ("admin:abort lost", "io:write every=3 delay=50ms", "io:read every=3 delay=45ms"),
    ("admin:abort drop", "io nth=3 delay=25ms"),
    ("io:write nth=1 drop", "io:flush limit=2 never"),
    ("io:read nth=1 drop", "io:write limit=2 delay=60ms"),
    ("io:write nth=1 never", "io p=0.3 delay=4ms"),
    ("io:write nth=1 drop", "reset nth=1 delay=10ms", "io p=0.3 delay=15ms"),
    ("io p=0.5 behind=2", "io nth=9 drop"),
    ("io every=4 cid=stale", "io p=0.4 delay=3ms"),
    ("io p=0.3 status=0x06", "io nth=5 drop"),
    ("io nth=4 fatal", "io p=0.5 delay=3ms"),
    ("io nth=4 gone", "io p=0.5 delay=3ms"),
]

TRANSITIONS = [
    "reset delay=5ms",
    "reset never",
    "enable nth=1 delay=5ms",
    "enable nth=2 delay=20ms",
    "enable nth=2 never",
    "enable nth=1 fatal",
    "enable nth=2 fatal",
    "enable nth=2 gone",
    "shutdown delay=5ms",
    "shutdown never",
    "shutdown gone",
]
CLAIMS = [
    "mqes=0",
    "mqes=1",
    "mqes=2",
    "mqes=65535",
    "to=0",
    "css=0",
    "css=0x40",
    "dstrd=1",
    "dstrd=15",
    "mpsmin=1",
    "mpsmin=5 mpsmax=4",
    "mdts=0",
    "mdts=1",
    "mdts=9",
    "mdts=255",
    "grant=0",
    "grant=0/65535",
    "grant=65535/0",
    "grant=0xffff",
    "vectors=0",
    "vectors=1",
    "vectors=2",
    "vectors=200",
]
SUBJECTS = [
    *(f"admin:{name}" for name in OPCODES["admin"] if name != "format"),
    *(f"io:{name}" for name in OPCODES["io"]),
]


def pairs() -> list[tuple[str, ...]]:
    """Every action on every opcode, and every way in which a controller can be odd, as sets of rules."""
    found: list[tuple[str, ...]] = []
    for subject in SUBJECTS:
        for action in [*ACTIONS, *LIES]:
            rules = [f"{subject} nth=1 {action}", f"{subject} nth=3 {action}"]
            if subject == "admin:abort":
                rules.append("io:write nth=2 never")
            found.append(tuple(rules))
    found += TOGETHER
    found += [(rule, "io:write nth=2 drop") for rule in TRANSITIONS]
    found += [(f"controller {claim}",) for claim in CLAIMS]
    return found


def is_lie(rules: tuple[str, ...]) -> bool:
    """Whether the data is not to be trusted under these rules. An Abort that lies is known of."""
    rules = tuple(rule for rule in rules if rule != "admin:abort lost")
    return any(lie in rule.split() for rule in rules for lie in LIES) or any(
        rule.startswith("controller") or "identify" in rule for rule in rules
    )


def some_rules(rng: random.Random) -> tuple[str, ...]:
    """One to three rules for commands of a controller that runs."""
    if rng.random() < 0.2:
        return rng.choice(TOGETHER)
    rules = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        subject = rng.choice([*SUBJECTS, "io", "io", "io:write", "io:read", "io:flush", "any"])
        when = rng.choice(
            ["nth=1", "nth=2", "nth=5", "p=0.1 limit=2", "every=4 limit=2", "limit=1"]
        )
        rules.append(f"{subject} {when} {rng.choice(ACTIONS)}")
    if rng.random() < 0.15:
        rules.append("io:write nth=2 drop")  # a reset is needed
        rules.append(rng.choice(TRANSITIONS))
    return tuple(rules)


def odd_bring_up(rng: random.Random) -> tuple[str, ...]:
    """Rules for the opening of a controller."""
    kind = rng.randrange(4)
    if kind == 0:
        return (rng.choice(TRANSITIONS),)
    if kind == 1:
        return (f"controller {rng.choice(CLAIMS)}",)
    if kind == 2:
        page = rng.choice(["select=1", "select=0", "select=3", "select=6", "select=2"])
        offset = rng.choice([rng.randrange(600), rng.randrange(160), 77, 130])
        return (f"admin:identify {page} flip={offset}:{rng.randrange(1, 256):02x}",)
    subject = rng.choice([subject for subject in SUBJECTS if subject.startswith("admin")])
    return (f"{subject} nth={rng.randint(1, 4)} {rng.choice(ACTIONS)}",)
