"""driver.address: what is understood, and how a refusal reads."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver import AddressError, DriverOptions, TransportError, parse_address
from driver.transports.open import open_transport


@pytest.mark.parametrize(
    ("text", "kind", "endpoint", "nsid"),
    [
        ("0000:01:00.0", "pci", "0000:01:00.0", 1),
        ("01:00.0", "pci", "0000:01:00.0", 1),
        ("0001:AF:1F.7/3", "pci", "0001:af:1f.7", 3),
        ("vfio-user:/run/x/cntrl", "vfio-user", "/run/x/cntrl", 1),
        ("vfio-user:/run/x/cntrl/12", "vfio-user", "/run/x/cntrl", 12),
        ("qtest:disk.img", "qtest", "disk.img", 1),
        ("qtest:a,b?mdts=5&nsid=2", "qtest", "a,b?mdts=5&nsid=2", 2),
        ("qtest:nsid=3", "qtest", "nsid=3", 1),
        ("file:disk.img", "file", "disk.img", 1),
        ("FILE:a:b", "file", "a:b", 1),
        ("disk.img", "file", "disk.img", 1),
        ("./strange:name", "file", "./strange:name", 1),
        ("/abs/path", "file", "/abs/path", 1),
    ],
)
def test_understood(text: str, kind: str, endpoint: str, nsid: int) -> None:
    address = parse_address(text)
    assert (address.kind, address.endpoint, address.nsid) == (kind, endpoint, nsid)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an address"),
        ("a\0b", "not an address"),
        ("0000:01:20.0", "device goes from 00 to 1f"),
        ("0000:01:00.8", "function from 0 to 7"),
        ("0000:01:00.0/0", "not a namespace id"),
        ("0000:01:00.0/x", "not a namespace id"),
        ("0000:01:00.0/4294967295", "not a namespace id"),
        ("file:", "path is missing"),
        ("qtest:", "path is missing"),
        ("qtest:a?nsid=0", "not a namespace id"),
        ("vfio-user:relative", "absolute socket path"),
        ("nvme:disk", "unknown kind of address 'nvme'"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_anything_parses_or_is_an_address_error(text: str) -> None:
    with contextlib.suppress(AddressError):
        assert parse_address(text).text == text


@pytest.mark.parametrize("text", ["ff:1f.7", "vfio-user:/no/such/socket", "/no/such/image"])
def test_what_is_not_there_is_named(text: str) -> None:
    """There is a transport for each kind of address."""
    with pytest.raises((AddressError, TransportError), match="no such"):
        open_transport(parse_address(text), DriverOptions())
