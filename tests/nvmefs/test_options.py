"""The table of -o options: each row does what it says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nvmefs.layout import ErrorPolicy
from nvmefs.options import TABLE, MountOptions, OptionError, Row, Treatment, describe, parse

IDS = [row.name for row in TABLE]
SAMPLES = {
    "commit": ("30", 30.0),
    "cache_mb": ("128", 128),
    "atime": ("noatime", "noatime"),
    "fsname": ("some,where".replace(",", "-"), "some-where"),
    "subtype": ("other", "other"),
    "errors": ("remount-ro", ErrorPolicy.REMOUNT_RO),
    "log": ("/var/log/x", "/var/log/x"),
    "attr_timeout": ("1.5", 1.5),
    "entry_timeout": ("0", 0.0),
    "fua": ("off", False),
    "lba_size": ("4096", 4096),
    "poll": ("always", "always"),
    "poll_ns": ("1000", 1000),
    "command_timeout": ("2.5", 2.5),
    "frontend": ("python", "python"),
    "threads": ("3", 3),
    "read_ahead_kb": ("512", 512),
    "max_ratio": ("10", 10),
}


def test_each_name_once() -> None:
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("row", TABLE, ids=IDS)
def test_row(row: Row) -> None:
    defaults = MountOptions()
    if row.treatment is Treatment.REFUSE:
        with pytest.raises(OptionError, match=f"'{row.name}' is not possible: ."):
            parse([row.name])
    elif row.treatment is Treatment.IGNORE:
        assert parse([row.name]) == parse([f"{row.name}=x"]) == defaults
    elif row.treatment is Treatment.FORWARD:
        assert parse([row.name]).forwarded == {row.value: row.name}
    else:
        assert row.field in {each.name for each in fields(MountOptions)}
        text, value = SAMPLES[row.name] if row.parse else ("", row.value)
        options = parse([f"{row.name}={text}" if text else row.name])
        assert getattr(options, row.field) == value
        for each in fields(MountOptions):
            if each.name != row.field:
                assert getattr(options, each.name) == getattr(defaults, each.name)


@pytest.mark.parametrize(
    "words",
    [
        "rw,dev,suid,nofail,_netdev",
        "defaults,x-systemd.automount,X-mount.mkdir=0755,comment=hello,user,noauto",
    ],
)
def test_what_fstab_and_mount_pass_on(words: str) -> None:
    assert parse([words]).read_only is False


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (["ro", "rw"], "read_only", False),
        (["rw,ro"], "read_only", True),
        (["noatime,strictatime"], "atime", "strictatime"),
        (["discard,nodiscard"], "discard", False),
        (["nosuid,suid"], "forwarded", {"suid": "suid"}),
        (["", ",,"], "read_only", False),
    ],
)
def test_the_last_word_counts(given: list[str], field: str, value: Any) -> None:
    assert getattr(parse(given), field) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "unknown mount option 'nonsense'"),
        ("nonsense=1", "unknown mount option 'nonsense'"),
        ("ro=1", "'ro' takes no value"),
        ("suid=1", "'suid' takes no value"),
        ("commit", "'commit' needs a value: commit=..."),
        ("commit=", "'commit': '' is not a number"),
        ("commit=0", "'commit': 0 is not between 0.01 and 3600"),
        ("commit=nan", "'commit': nan is not between"),
        ("cache_mb=1.5", "'cache_mb': '1.5' is not a number"),
        ("lba_size=1024", "'lba_size': '1024' is not one of 512, 4096"),
        ("fsname=", "'fsname': a value is missing"),
        ("atime=never", "'atime': 'never' is not one of"),
        ("loop,ro", "'loop' is not possible: name the image file"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse([text])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sloppy_ignores_what_is_unknown_alone() -> None:
    assert parse(["nonsense,ro"], sloppy=True).read_only
    with pytest.raises(OptionError):
        parse(["loop"], sloppy=True)


def test_help_names_what_is_implemented() -> None:
    text = describe()
    for row in TABLE:
        if row.treatment is Treatment.IMPLEMENT:
            assert f"  {row.name}" in text


def test_the_manual_names_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs/man/nvmefs.8").read_text().replace("\\-", "-")
    words = set(re.findall(r"[a-z_]+", page))
    assert [row.name for row in TABLE if row.name not in words] == []
