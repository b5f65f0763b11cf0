"""Admin commands: what they answer, and each status they can end with (section 5)."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.driver.embedded.harness import (
    ABORT,
    ASYNC_EVENT,
    CC,
    CC_ENABLE,
    CREATE_CQ,
    CREATE_SQ,
    DELETE_CQ,
    DELETE_SQ,
    DOORBELL_BUFFER,
    FLUSH,
    GET_FEATURES,
    GET_LOG,
    IOVA,
    PAGE,
    READ,
    SET_FEATURES,
    WRITE,
    Host,
    command,
    rw,
)

INVALID_OPCODE, INVALID_FIELD, DATA_TRANSFER, ABORT_REQUESTED = 0x001, 0x002, 0x004, 0x007
INVALID_NAMESPACE, SEQUENCE_ERROR, PRP_OFFSET = 0x00B, 0x00C, 0x013
CQ_INVALID, QUEUE_ID, QUEUE_SIZE, EVENT_LIMIT, VECTOR = 0x100, 0x101, 0x102, 0x105, 0x108
LOG_PAGE, QUEUE_DELETION, NOT_SAVEABLE, NOT_PER_NAMESPACE = 0x109, 0x10C, 0x10D, 0x10F


def status(host: Host, code: bytes) -> int:
    reply = host.admin.run(code)
    assert reply.dnr == (reply.status not in (0, ABORT_REQUESTED))
    return reply.status


def test_identify_controller(make_host: Callable[..., Host]) -> None:
    host = make_host(mdts=256 << 10)
    host.enable()
    reply, data = host.identify(1)
    assert reply.status == 0
    assert data[4:24].strip().isalnum()
    assert data[24:64] == b"nvmefs embedded controller".ljust(40)
    assert data[64:72] == b"1.0     "
    assert data[77] == 6, "MDTS: 4 KiB << 6"
    assert struct.unpack_from("<I", data, 80) == (0x00010400,)
    assert struct.unpack_from("<H", data, 256)[0] & 0x100, "doorbell buffers"
    assert (data[512], data[513]) == (0x66, 0x44)
    assert struct.unpack_from("<I", data, 516) == (1,)
    oncs = struct.unpack_from("<H", data, 520)[0]
    assert oncs == 0b1_1001_1101, "compare, DSM, write zeroes, save/select, verify, copy"
    assert data[525] == 7
    assert data[768:].startswith(b"nqn.2014-08.org.nvmexpress:uuid:")
    assert data[768 + 32 + 36] == 0


@pytest.mark.parametrize(("mdts", "field"), [(0, 0), (8192, 1), (1 << 20, 8)])
def test_mdts(make_host: Callable[..., Host], mdts: int, field: int) -> None:
    host = make_host(mdts=mdts)
    host.enable()
    assert host.identify(1)[1][77] == field


@pytest.mark.parametrize(("lba_size", "bits"), [(512, 9), (4096, 12)])
def test_identify_namespace(make_host: Callable[..., Host], lba_size: int, bits: int) -> None:
    host = make_host(lba_size=lba_size)
    host.enable()
    reply, data = host.identify(0, 1)
    assert reply.status == 0
    blocks = (16 << 20) // lba_size
    assert struct.unpack_from("<QQQ", data) == (blocks, blocks, blocks)
    assert (data[25], data[26], data[27]) == (1, bits == 12, 0), "two formats, no metadata"
    assert data[33] & 7 == 1, "deallocated blocks read as zeroes"
    assert struct.unpack_from("<4H", data, 64) == (4096 // lba_size - 1,) * 4
    assert any(data[104:120])
    assert any(data[120:128])
    assert struct.unpack_from("<II", data, 128) == (9 << 16, 12 << 16)


def test_identify_lists(host: Host) -> None:
    assert struct.unpack_from("<2I", host.identify(2, 0)[1]) == (1, 0)
    assert struct.unpack_from("<2I", host.identify(2, 1)[1]) == (0, 0)
    data = host.identify(3, 1)[1]
    found, at = [], 0
    while data[at + 1]:
        found.append((data[at], data[at + 1]))
        assert any(data[at + 4 : at + 4 + data[at + 1]])
        at += 4 + data[at + 1]
    assert found == [(1, 8), (2, 16), (3, 16)]


@pytest.mark.parametrize(
    ("cns", "nsid", "expected"),
    [
        (0, 0, INVALID_NAMESPACE),
        (0, 2, INVALID_NAMESPACE),
        (0, 0xFFFFFFFF, INVALID_NAMESPACE),
        (2, 0xFFFFFFFE, INVALID_NAMESPACE),
        (3, 0, INVALID_NAMESPACE),
        (0x10, 0, INVALID_FIELD),
        (0x12, 1, INVALID_FIELD),
        (0x13, 0, INVALID_FIELD),
        (0xFF, 0, INVALID_FIELD),
    ],
)
def test_identify_refuses(host: Host, cns: int, nsid: int, expected: int) -> None:
    reply, data = host.identify(cns, nsid)
    assert reply.status == expected
    assert not any(data)


def test_identify_is_stable(make_host: Callable[..., Host]) -> None:
    seen = []
    for _ in range(2):
        host = make_host()
        host.enable()
        seen.append((host.identify(1)[1][4:24], host.identify(0, 1)[1][104:128]))
        host.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("opcode", "flags", "expected"),
    [(0x03, 0, INVALID_OPCODE), (0x18, 0, INVALID_OPCODE), (0xFF, 0, INVALID_OPCODE),
     (0x06, 0x40, INVALID_FIELD), (0x06, 0x01, INVALID_FIELD)],
)  # fmt: skip
def test_unknown_admin_commands(host: Host, opcode: int, flags: int, expected: int) -> None:
    assert status(host, command(opcode, flags=flags, prp1=IOVA + (1 << 20))) == expected


def test_create_cq_refuses(host: Host) -> None:
    good = IOVA + host.memory.take(2 * PAGE)
    for qid, size, bits, prp, expected in [
        (0, 15, 1, good, QUEUE_ID),
        (17, 15, 1, good, QUEUE_ID),
        (1, 0, 1, good, QUEUE_SIZE),
        (1, 1024, 1, good, QUEUE_SIZE),
        (1, 15, 0, good, INVALID_FIELD),
        (1, 15, 1, good + 64, PRP_OFFSET),
        (1, 15, 3 | 17 << 16, good, VECTOR),
        (1, 15, 1, 0x7000_0000_0000, DATA_TRANSFER),
        (1, 1023, 1, IOVA + host.memory.size - PAGE, DATA_TRANSFER),
        (1, 15, 3 | 16 << 16, good, 0),
        (1, 15, 1, good, QUEUE_ID),
    ]:
        create = command(CREATE_CQ, prp1=prp, cdw=(qid | size << 16, bits))
        assert status(host, create) == expected, (qid, size, bits, prp)


def test_create_sq_refuses(host: Host) -> None:
    good = IOVA + host.memory.take(2 * PAGE)
    assert status(host, command(CREATE_CQ, prp1=good, cdw=(1 | 15 << 16, 1))) == 0
    good += PAGE
    for qid, size, bits, prp, expected in [
        (0, 15, 1 | 1 << 16, good, QUEUE_ID),
        (17, 15, 1 | 1 << 16, good, QUEUE_ID),
        (1, 15, 1 | 0 << 16, good, QUEUE_ID),
        (1, 15, 1 | 17 << 16, good, QUEUE_ID),
        (1, 15, 1 | 2 << 16, good, CQ_INVALID),
        (1, 0, 1 | 1 << 16, good, QUEUE_SIZE),
        (1, 1024, 1 | 1 << 16, good, QUEUE_SIZE),
        (1, 15, 0 | 1 << 16, good, INVALID_FIELD),
        (1, 15, 1 | 1 << 16, good + 4, PRP_OFFSET),
        (1, 15, 1 | 1 << 16, 0x7000_0000_0000, DATA_TRANSFER),
        (1, 15, 1 | 1 << 16, good, 0),
        (1, 15, 1 | 1 << 16, good, QUEUE_ID),
    ]:
        create = command(CREATE_SQ, prp1=prp, cdw=(qid | size << 16, bits))
        assert status(host, create) == expected, (qid, size, bits, prp)


def test_entry_sizes_must_be_set(host: Host) -> None:
    host.transport.write32(CC, 1)
    create = command(CREATE_CQ, prp1=IOVA + host.memory.take(PAGE), cdw=(1 | 15 << 16, 1))
    assert status(host, create) == QUEUE_SIZE
    host.transport.write32(CC, CC_ENABLE)
    assert status(host, create) == 0


def test_delete_queues_in_order(host: Host) -> None:
    queue = host.create_queue(1)
    assert status(host, command(DELETE_CQ, cdw=(1,))) == QUEUE_DELETION
    assert status(host, command(DELETE_CQ, cdw=(0,))) == QUEUE_ID
    assert status(host, command(DELETE_SQ, cdw=(0,))) == QUEUE_ID
    assert status(host, command(DELETE_SQ, cdw=(2,))) == QUEUE_ID
    assert status(host, command(DELETE_SQ, cdw=(65535,))) == QUEUE_ID
    assert status(host, command(DELETE_SQ, cdw=(1,))) == 0
    assert status(host, command(DELETE_SQ, cdw=(1,))) == QUEUE_ID
    assert status(host, command(DELETE_CQ, cdw=(1,))) == 0
    assert status(host, command(DELETE_CQ, cdw=(1,))) == QUEUE_ID
    queue = host.create_queue(1)
    assert queue.run(command(FLUSH, nsid=1)).status == 0


def test_queues_share_a_completion_queue(host: Host) -> None:
    first = host.create_queue(1)
    second = host.make_queue(2, 16)
    create = command(CREATE_SQ, prp1=IOVA + second.sq, cdw=(2 | 15 << 16, 1 | 1 << 16))
    assert status(host, create) == 0
    second.push(command(FLUSH, nsid=1, cid=77))
    second.ring()
    reply = first.reap()[0]
    assert (reply.cid, reply.sq_id, reply.sq_head) == (77, 2, 1)
    assert status(host, command(DELETE_SQ, cdw=(1,))) == 0
    assert status(host, command(DELETE_CQ, cdw=(1,))) == QUEUE_DELETION


def test_number_of_queues(make_host: Callable[..., Host]) -> None:
    host = make_host(queues=4)
    host.enable()
    assert host.admin.run(command(GET_FEATURES, cdw=(7,))).result == 3 | 3 << 16
    reply = host.admin.run(command(SET_FEATURES, cdw=(7, 63 | 1 << 16)))
    assert (reply.status, reply.result) == (0, 3 | 1 << 16)
    assert status(host, command(SET_FEATURES, cdw=(7, 0xFFFF))) == INVALID_FIELD
    good = IOVA + host.memory.take(PAGE)
    assert status(host, command(CREATE_CQ, prp1=good, cdw=(3 | 15 << 16, 1))) == QUEUE_ID
    assert status(host, command(CREATE_CQ, prp1=good, cdw=(2 | 15 << 16, 1))) == 0
    assert status(host, command(SET_FEATURES, cdw=(7, 1))) == SEQUENCE_ERROR


def test_one_queue_is_granted(make_host: Callable[..., Host]) -> None:
    host = make_host(queues=1, vectors=1)
    host.enable()
    assert host.admin.run(command(SET_FEATURES, cdw=(7, 7 | 7 << 16))).result == 0
    assert host.create_queue(1, vector=0).run(command(FLUSH, nsid=1)).status == 0


@pytest.mark.parametrize(
    ("feature", "value", "stored"),
    [
        (0x01, 0x01020305, 0x01020305),
        (0x02, 0, 0),
        (0x04, 0x0150, 0x0150),
        (0x05, 0x0010, 0x0010),
        (0x06, 0, 0),
        (0x08, 0xFFFF_0102, 0x0102),
        (0x09, 1 << 16 | 3, 1 << 16 | 3),
        (0x0A, 1, 1),
        (0x0B, 0x1FF02, 0x102),
    ],
)
def test_features_keep_their_value_until_reset(
    host: Host, feature: int, value: int, stored: int
) -> None:
    get = command(GET_FEATURES, cdw=(feature, value & 0xFFFF if feature == 9 else 0))
    default = host.admin.run(get).result
    assert status(host, command(SET_FEATURES, cdw=(feature, value))) == 0
    assert host.admin.run(get).result == stored
    for select in (1, 2):  # the default, and what is saved: the default
        selected = command(
            GET_FEATURES, cdw=(feature | select << 8, value & 0xFFFF if feature == 9 else 0)
        )
        assert host.admin.run(selected).result == default
    assert host.admin.run(command(GET_FEATURES, cdw=(feature | 3 << 8,))).result & 5 == 4
    host.disable()
    host.enable()
    assert host.admin.run(get).result == default


@pytest.mark.parametrize(
    ("dwords", "nsid", "expected"),
    [
        ((0x00, 0), 0, INVALID_FIELD),
        ((0x03, 0), 0, INVALID_FIELD),
        ((0x0F, 0), 0, INVALID_FIELD),
        ((0x06 | 1 << 31, 1), 0, NOT_SAVEABLE),
        ((0x06, 1), 1, NOT_PER_NAMESPACE),
        ((0x06, 1), 2, INVALID_NAMESPACE),
        ((0x05, 1), 2, INVALID_NAMESPACE),
        ((0x05, 1), 1, 0),
        ((0x05, 1 << 16), 1, INVALID_FIELD),
        ((0x02, 1), 0, INVALID_FIELD),
        ((0x04, 2 << 20), 0, INVALID_FIELD),
        ((0x04, 3 << 16), 0, INVALID_FIELD),
        ((0x09, 17), 0, INVALID_FIELD),
    ],
)
def test_set_features_refuses(
    host: Host, dwords: tuple[int, int], nsid: int, expected: int
) -> None:
    assert status(host, command(SET_FEATURES, nsid=nsid, cdw=dwords)) == expected


@pytest.mark.parametrize(
    ("dwords", "nsid", "expected"),
    [
        ((0x00,), 0, INVALID_FIELD),
        ((0x0C,), 0, INVALID_FIELD),
        ((0x06 | 4 << 8,), 0, INVALID_FIELD),
        ((0x06,), 2, INVALID_NAMESPACE),
        ((0x04, 1 << 16), 0, INVALID_FIELD),
        ((0x09, 17), 0, INVALID_FIELD),
    ],
)
def test_get_features_refuses(
    host: Host, dwords: tuple[int, ...], nsid: int, expected: int
) -> None:
    assert status(host, command(GET_FEATURES, nsid=nsid, cdw=dwords)) == expected


def get_log(
    host: Host, page: int, nbytes: int, offset: int = 0, nsid: int = 0
) -> tuple[int, bytes]:
    at = host.memory.take(nbytes)
    dwords = nbytes // 4 - 1
    reply = host.admin.run(
        command(
            GET_LOG,
            nsid=nsid,
            prp1=IOVA + at,
            prp2=IOVA + at + PAGE,
            cdw=(page | (dwords & 0xFFFF) << 16, dwords >> 16, offset),
        )
    )
    return reply.status, bytes(host.memory.map[at : at + nbytes])


def test_error_log(host: Host) -> None:
    assert host.error_log() == []
    queue = host.create_queue(1)
    assert queue.run(rw(READ, 1 << 40, 1, cid=42)).status == 0x080
    assert status(host, command(0x18, cid=9)) == INVALID_OPCODE
    log = host.error_log()
    assert [(sq, cid, code & 0x7FF) for _, sq, cid, code in log] == [(0, 9, 1), (1, 42, 0x80)]
    assert [count for count, *_ in log] == [2, 1]
    for _ in range(70):
        status(host, command(0x18))
    counts = [count for count, *_ in host.error_log()]
    assert counts == list(range(72, 8, -1)), "the newest 64"


def test_smart_log(host: Host) -> None:
    queue = host.create_queue(1)
    at = host.memory.take(PAGE)
    for lba in range(3):
        assert queue.run(rw(WRITE, lba, 1, prp1=IOVA + at)).status == 0
    assert queue.run(rw(READ, 0, 1, prp1=IOVA + at)).status == 0
    code, data = get_log(host, 2, 512, nsid=0xFFFFFFFF)
    assert code == 0
    assert data[0] == 0
    assert struct.unpack_from("<H", data, 1) == (313,)
    assert struct.unpack_from("<QQ", data, 64) == (1, 0), "host reads"
    assert struct.unpack_from("<QQ", data, 80) == (3, 0), "host writes"
    assert get_log(host, 2, 512, nsid=1)[0] == INVALID_FIELD


def test_other_logs(host: Host) -> None:
    code, data = get_log(host, 3, 512)
    assert (code, data[0], data[8:16]) == (0, 1, b"1.0     ")
    code, data = get_log(host, 5, 4096)
    supported = {i for i in range(256) if data[1024 + 4 * i] & 1}
    assert supported == {0, 1, 2, 5, 8, 9, 12, 0x19}
    assert {i for i in range(256) if data[4 * i]} == {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7C, 0x80}
    assert get_log(host, 5, 16, offset=1024)[1] == data[1024:1040]
    assert get_log(host, 4, 4096) == (0, bytes(4096))
    assert get_log(host, 6, 512)[0] == LOG_PAGE
    assert get_log(host, 2, 512, offset=3)[0] == INVALID_FIELD
    assert get_log(host, 2, 512, offset=516)[0] == INVALID_FIELD
    code, data = get_log(host, 3, 8192)
    assert (code, any(data[512:])) == (0, False), "nothing is written behind the end of a page"


def test_async_events(host: Host) -> None:
    for cid in range(100, 104):
        host.admin.push(command(ASYNC_EVENT, cid=cid))
    host.admin.ring()
    assert status(host, command(ASYNC_EVENT, cid=104)) == EVENT_LIMIT
    # The composite temperature is 313 K: a threshold below it is an event, once enabled.
    assert status(host, command(SET_FEATURES, cdw=(0x04, 300))) == 0
    assert status(host, command(SET_FEATURES, cdw=(0x0B, 2))) == 0
    host.admin.push(command(SET_FEATURES, cid=1, cdw=(0x04, 300)))
    host.admin.ring()
    replies = {reply.cid: reply for reply in host.admin.reap(2)}
    assert replies[100].result == 1 | 1 << 8 | 2 << 16
    # The same type stays quiet until its log page is read, then is told again.
    assert status(host, command(SET_FEATURES, cdw=(0x04, 301))) == 0
    retained = IOVA + host.memory.take(PAGE)
    read_log = (2 | 127 << 16, 0)
    assert status(host, command(GET_LOG, prp1=retained, cdw=(2 | 1 << 15 | 127 << 16, 0))) == 0
    assert host.admin.poll() is None
    host.admin.push(command(GET_LOG, cid=2, prp1=retained, cdw=read_log))
    host.admin.ring()
    assert {reply.cid for reply in host.admin.reap(2)} == {2, 101}


def test_an_event_waits_for_a_request(host: Host) -> None:
    host.doorbells[2 * 5] = 1  # queue 5 does not exist
    host.kick()
    assert status(host, command(FLUSH)) == QUEUE_ID  # opcode 0: Delete SQ 0
    reply = host.admin.run(command(ASYNC_EVENT, cid=55))
    assert (reply.cid, reply.result) == (55, 0 | 0 << 8 | 1 << 16)
    assert (0, 5, 0xFFFF, 0) in [(0, sq, cid, code) for _, sq, cid, code in host.error_log()]


def test_abort(host: Host) -> None:
    host.admin.push(command(ASYNC_EVENT, cid=60))
    host.admin.push(command(ABORT, cid=61, cdw=(0 | 60 << 16,)))
    host.admin.ring()
    first, second = host.admin.reap(2)
    assert (first.cid, first.status) == (60, ABORT_REQUESTED)
    assert (second.cid, second.status, second.result) == (61, 0, 0)
    reply = host.admin.run(command(ABORT, cdw=(0 | 60 << 16,)))
    assert (reply.status, reply.result & 1) == (0, 1), "nothing to abort"
    assert status(host, command(ABORT, cdw=(3,))) == INVALID_FIELD


def test_reset_forgets_event_requests(host: Host) -> None:
    for cid in range(4):
        host.admin.push(command(ASYNC_EVENT, cid=cid))
    host.admin.ring()
    assert status(host, command(GET_FEATURES, cdw=(1,))) == 0
    host.disable()
    host.enable()
    for cid in range(4):
        host.admin.push(command(ASYNC_EVENT, cid=cid))
    host.admin.ring()
    assert status(host, command(GET_FEATURES, cdw=(1,))) == 0


def test_doorbell_buffer_refuses(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.enable()
    page = IOVA + host.memory.take(PAGE)
    for prp1, prp2, expected in [
        (page + 4, page, INVALID_FIELD),
        (page, page + 8, INVALID_FIELD),
        (page, 0x7000_0000_0000, DATA_TRANSFER),
        (0x7000_0000_0000, page, DATA_TRANSFER),
    ]:
        assert status(host, command(DOORBELL_BUFFER, prp1=prp1, prp2=prp2)) == expected
    host.close()
    plain = make_host(shadow_doorbells=False)
    plain.enable()
    assert struct.unpack_from("<H", plain.identify(1)[1], 256)[0] & 0x100 == 0
    assert status(plain, command(DOORBELL_BUFFER, prp1=page, prp2=page)) == INVALID_OPCODE
