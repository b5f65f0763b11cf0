"""driver.embedded.faults: rules in words."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.embedded import faults as language
from driver.embedded._controller import ffi, lib
from driver.embedded.faults import OPCODES, FaultRule, FaultSyntaxError, parse_faults
from driver.errors import DriverError
from driver.transports.embedded import open_embedded


def rule(text: str) -> FaultRule:
    return parse_faults([text]).rules[0]


def test_a_rule_with_everything() -> None:
    found = rule(
        "q3:read nth=2 every=0x10 limit=5 p=0.5 lba=7-9 delay=1.5ms behind=4 status=0x281 dnr crd=2 "
        "executed duplicate=3 cid=^0x1000 sqid=9 sqhead=8 result=7 event=0x010203 quiet"
    )
    bits = lib.FAULT_DELAY | lib.FAULT_BEHIND | lib.FAULT_STATUS | lib.FAULT_EXECUTED
    bits |= lib.FAULT_DUPLICATE | lib.FAULT_CID_FLIP | lib.FAULT_SQ_ID | lib.FAULT_SQ_HEAD
    bits |= lib.FAULT_RESULT | lib.FAULT_EVENT | lib.FAULT_QUIET
    assert found == FaultRule(
        3, 2, -1, 7, 9, 2, 16, 5, 1 << 31, bits, 1_500_000, 4, 3, 0x5281, 0x1000, 9, 8, 7, 0x010203
    )


@pytest.mark.parametrize(
    ("text", "queue", "opcode"),
    [
        ("any drop", -1, -1),
        ("any:0x7c drop", -1, 0x7C),
        ("io drop", -2, -1),
        ("admin:identify drop", 0, 6),
        ("q0:identify drop", 0, 6),
        ("q65535:flush drop", 65535, 0),
        ("io:copy drop", -2, 0x19),
        ("enable never", lib.FAULT_ENABLE, -1),
        ("reset delay=1s", lib.FAULT_RESET, -1),
        ("shutdown delay=1us", lib.FAULT_SHUTDOWN, -1),
    ],
)
def test_subjects(text: str, queue: int, opcode: int) -> None:
    assert (rule(text).queue, rule(text).opcode) == (queue, opcode)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with a subject"),
        ("disk drop", "no subject"),
        ("qx drop", "no subject"),
        ("io:identify drop", "no opcode"),
        ("admin:read drop", "no opcode"),
        ("any:read drop", "no opcode"),
        ("io:256 drop", "outside"),
        ("io", "no action"),
        ("io nth=3", "no action"),
        ("io nth=0 drop", "counts from 1"),
        ("io nth drop", "lacks ="),
        ("io drop=1", "no condition or action"),
        ("io fly", "no condition or action"),
        ("io dnr", "add status"),
        ("io crd=1 drop", "add status"),
        ("io status=0x800", "outside"),
        ("io status=x", "not a number"),
        ("io status=1 crd=4", "outside"),
        ("io p=0 drop", "probability"),
        ("io p=1.1 drop", "probability"),
        ("io p=often drop", "probability"),
        ("io delay=5", "as in"),
        ("io delay=5h", "as in"),
        ("io delay=ms", "as in"),
        ("io patch=5", "OFFSET:HEX"),
        ("io patch=5:0", "OFFSET:HEX"),
        ("io patch=5:" + "00" * 65, "OFFSET:HEX"),
        ("io patch=x:00", "not a number"),
        ("io cid=65536", "outside"),
        ("io lba=x drop", "not a number"),
        ("enable drop", "know"),
        ("controller", "no field"),
        ("controller speed=1", "none of"),
        ("controller mqes=65536", "outside"),
        ("controller grant=1/x", "not a number"),
    ],
)
def test_what_is_not_understood_is_quoted(text: str, says: str) -> None:
    with pytest.raises(FaultSyntaxError, match=says) as caught:
        parse_faults([text])
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DriverError)


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_text_is_a_plan_or_an_error(texts: list[str]) -> None:
    with contextlib.suppress(FaultSyntaxError):
        parse_faults(texts)


_WORDS = [*language._FLAGS, *language._NUMBERS, *language._WORDS]


@given(
    st.sampled_from(["io", "admin", "any:1", "q1", "enable", "controller"]),
    st.lists(st.tuples(st.sampled_from(_WORDS), st.sampled_from(["", "=1", "=-1", "=0xffff:00"]))),
)
def test_any_words_are_a_plan_or_an_error(subject: str, words: list[tuple[str, str]]) -> None:
    try:
        plan = parse_faults([" ".join([subject, *map("".join, words)])])
    except FaultSyntaxError:
        return
    assert len(plan.rules) == 1


def test_a_rule_has_the_fields_of_the_structure() -> None:
    fields = [name for name, _ in ffi.typeof("struct fault_rule").fields]
    fields.remove("patch_bytes")
    assert list(FaultRule.__dataclass_fields__) == fields


def test_each_opcode_has_one_name() -> None:
    for names in OPCODES.values():
        assert len(set(names.values())) == len(names)


def test_the_image_is_not_touched_when_a_rule_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FaultSyntaxError):
        open_embedded(tmp_path / "absent.img", faults=["io fly"])
