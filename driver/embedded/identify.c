/*
 * Identify (section 5.15): what this controller and its one namespace say of themselves.
 */
#include <stdio.h>
#include <string.h>

#include "controller.h"

/* Unassigned by the PCI-SIG: this is no product of any vendor. */
#define VENDOR_ID 0x1234
/* A locally administered OUI, lowest byte first. */
static const uint8_t OUI[3] = {0x00, 0x6e, 0x06};

enum { CNS_NAMESPACE = 0x00, CNS_CONTROLLER = 0x01, CNS_ACTIVE_LIST = 0x02, CNS_DESCRIPTORS = 0x03,
       CNS_COMMAND_SET_CONTROLLER = 0x06 };

static void put16(uint8_t *at, uint16_t value)
{
    memcpy(at, &value, sizeof value);
}

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
}

/* ASCII fields are padded with spaces and not terminated. */
static void put_text(uint8_t *at, size_t length, const char *text)
{
    memset(at, ' ', length);
    memcpy(at, text, strlen(text) < length ? strlen(text) : length);
}

static void put_nguid(uint8_t *at, const uint8_t *uuid)
{
    memcpy(at, uuid, 8); /* vendor specific extension identifier */
    for (int i = 0; i < 3; i++)
        at[8 + i] = OUI[2 - i];
    memcpy(at + 11, uuid + 8, 5);
}

static void put_eui64(uint8_t *at, const uint8_t *uuid)
{
    for (int i = 0; i < 3; i++)
        at[i] = OUI[2 - i];
    memcpy(at + 3, uuid + 11, 5);
}

static void put_nqn(uint8_t *at, const uint8_t *uuid)
{
    char *text = (char *)at;
    text += sprintf(text, "nqn.2014-08.org.nvmexpress:uuid:");
    for (int i = 0; i < 16; i++)
        text += sprintf(text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

static void put_serial(uint8_t *at, const uint8_t *uuid)
{
    char text[21];
    for (int i = 0; i < 10; i++)
        sprintf(text + 2 * i, "%02X", uuid[i]);
    put_text(at, 20, text);
}

static uint8_t pages_log2(uint32_t bytes)
{
    return bytes ? (uint8_t)(__builtin_ctz(bytes) - MIN_PAGE_BITS) : 0;
}

/* Figure 247. */
static void fill_controller(const struct controller *c, uint8_t *data)
{
    put16(data + 0, VENDOR_ID);
    put16(data + 2, VENDOR_ID);
    put_serial(data + 4, c->options.uuid);
    put_text(data + 24, 40, "nvmefs embedded controller");
    put_text(data + 64, 8, FIRMWARE_REVISION);
    memcpy(data + 73, OUI, sizeof OUI);
    data[77] = pages_log2(c->options.max_transfer_bytes); /* MDTS */
    put16(data + 78, 1); /* CNTLID */
    put32(data + 80, NVME_VERSION);
    put32(data + 92, 0x100);                                  /* OAES: changed namespaces */
    data[111] = 1;                                            /* CNTRLTYPE: I/O controller */
    put16(data + 256, c->options.shadow_doorbells ? 0x102 : 0x2); /* OACS: doorbell buffers, Format NVM */
    data[258] = 3;                                            /* ACL, zero-based */
    data[259] = ASYNC_EVENT_LIMIT - 1;                        /* AERL */
    data[260] = 0x03;                                         /* FRMW: one slot, read only */
    data[261] = 0x06;                                         /* LPA: effects log; offsets and lengths */
    data[262] = ERROR_LOG_ENTRIES - 1;                        /* ELPE */
    put16(data + 266, 343);                                   /* WCTEMP, kelvin */
    put16(data + 268, 373);                                   /* CCTEMP */
    data[512] = 0x66;                                         /* SQES */
    data[513] = 0x44;                                         /* CQES */
    put32(data + 516, 1);                                     /* NN */
    put16(data + 520, 0x19d); /* ONCS: compare, DSM, write zeroes, save/select in features, verify, copy */
    data[525] = 0x07;         /* VWC: present; Flush takes the broadcast namespace */
    put16(data + 534, 1);     /* OCFS: descriptor format 0 */
    put32(data + 536, c->options.sgl); /* SGLS: 1 any alignment, 2 dwords; no bit buckets, no length beyond the data */
    put_nqn(data + 768, c->options.uuid);
    put16(data + 2048, 2500); /* power state 0: at most 25 W */
}

/* Figure 245. */
static void fill_namespace(const struct controller *c, uint8_t *data)
{
    put64(data + 0, c->block_count);
    put64(data + 8, c->block_count);
    put64(data + 16, c->block_count);
    data[24] = 0x10;                           /* NSFEAT: the preferred sizes below are given */
    data[25] = 1;                              /* NLBAF, zero-based: 512 and 4096 */
    data[26] = (uint8_t)namespace_format_index(c); /* FLBAS */
    data[33] = c->backend.can_punch ? 0x09 : 0x08; /* DLFEAT: deallocated blocks read as zeroes; DEAC */
    /* Preferred granularity and alignment of writes and deallocations: the host's 4 KiB page. */
    uint16_t preferred = (uint16_t)((4096u >> c->block_bits) - 1);
    for (int at = 64; at <= 70; at += 2)
        put16(data + at, preferred);
    put16(data + 72, preferred); /* NOWS */
    struct command_limits copy = copy_limits(c);
    put16(data + 74, copy.copy_range_blocks);        /* MSSRL */
    put32(data + 76, copy.copy_blocks);              /* MCL */
    data[80] = (uint8_t)(copy.copy_ranges - 1);      /* MSRC */
    data[99] = c->options.read_only; /* NSATTR: write protected */
    put_nguid(data + 104, c->options.uuid);
    put_eui64(data + 120, c->options.uuid);
    data[128 + 2] = 9; /* LBAF0, LBAF1: no metadata */
    data[132 + 2] = 12;
}

/* Figure 248: type, length, two reserved bytes, identifier. */
static void fill_descriptors(const struct controller *c, uint8_t *data)
{
    data[0] = 1;
    data[1] = 8;
    put_eui64(data + 4, c->options.uuid);
    data += 12;
    data[0] = 2;
    data[1] = 16;
    put_nguid(data + 4, c->options.uuid);
    data += 20;
    data[0] = 3;
    data[1] = 16;
    memcpy(data + 4, c->options.uuid, 16);
}

/* NVM command set 1.0, section 4.1.5.2: what MDTS does not bound. */
static void fill_limits(const struct controller *c, uint8_t *data)
{
    const struct command_limits *limits = &c->options.limits;
    data[0] = pages_log2(limits->verify_bytes);
    data[1] = pages_log2(limits->write_zeroes_bytes);
    data[3] = limits->ranges;
    put32(data + 4, limits->range_blocks);
    put64(data + 8, limits->deallocate_blocks);
}

uint16_t identify_execute(struct controller *c, const struct nvme_command *cmd)
{
    uint8_t data[NVME_IDENTIFY_BYTES] = {0};
    switch (cmd->cdw10 & 0xff) {
    case CNS_NAMESPACE:
        if (cmd->nsid != 1) /* without namespace management the broadcast value is not one either */
            return STATUS_INVALID_NAMESPACE;
        fill_namespace(c, data);
        break;
    case CNS_CONTROLLER:
        fill_controller(c, data);
        break;
    case CNS_ACTIVE_LIST:
        if (cmd->nsid >= 0xfffffffe)
            return STATUS_INVALID_NAMESPACE;
        if (cmd->nsid == 0) /* identifiers greater than the one given */
            put32(data, 1);
        break;
    case CNS_DESCRIPTORS:
        if (cmd->nsid != 1)
            return STATUS_INVALID_NAMESPACE;
        fill_descriptors(c, data);
        break;
    case CNS_COMMAND_SET_CONTROLLER:
        if (cmd->cdw11 >> 24) /* CSI: the NVM command set is the only one */
            return STATUS_INVALID_FIELD;
        fill_limits(c, data);
        break;
    default: /* controller lists among them: they come with namespace management */
        return STATUS_INVALID_FIELD;
    }
    return data_copy_out(c, cmd, data, sizeof data);
}
