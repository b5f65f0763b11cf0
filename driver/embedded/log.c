/*
 * Log pages (section 5.14): errors, SMART / health, firmware slots, changed namespaces, commands supported and
 * effects.
 */
#include <string.h>

#include "controller.h"

#define LOG_MAX_BYTES 4096u

void log_error(struct controller *c, uint16_t sq_id, const struct nvme_command *cmd, uint16_t status)
{
    struct error_entry *entry = &c->errors[c->error_count % ERROR_LOG_ENTRIES];
    *entry = (struct error_entry){.count = ++c->error_count, .sq_id = sq_id, .location = 0xffff, .transport = 1};
    entry->cid = cmd ? cmd->cid : 0xffff;
    entry->status = (uint16_t)(status << 1);
    if (!cmd)
        return;
    entry->nsid = cmd->nsid;
    if (sq_id)
        entry->lba = cmd->cdw10 | (uint64_t)cmd->cdw11 << 32;
}

/* Newest first; entries never used are zero. */
static uint32_t fill_error(const struct controller *c, uint8_t *data)
{
    uint64_t count = c->error_count < ERROR_LOG_ENTRIES ? c->error_count : ERROR_LOG_ENTRIES;
    for (uint64_t i = 0; i < count; i++)
        memcpy(data + i * sizeof c->errors[0], &c->errors[(c->error_count - 1 - i) % ERROR_LOG_ENTRIES],
               sizeof c->errors[0]);
    return ERROR_LOG_ENTRIES * sizeof c->errors[0];
}

static bool too_warm(const struct controller *c)
{
    return TEMPERATURE_KELVIN >= c->features.over_temperature || TEMPERATURE_KELVIN <= c->features.under_temperature;
}

/* Figure 196. Data units are thousands of 512 bytes, rounded up. */
static uint32_t fill_smart(const struct controller *c, uint8_t *data)
{
    const struct controller_statistics *statistics = &c->statistics;
    uint16_t temperature = TEMPERATURE_KELVIN;
    data[0] = too_warm(c) ? 0x02 : 0;
    memcpy(data + 1, &temperature, sizeof temperature);
    data[3] = 100; /* available spare, percent */
    data[4] = 10;  /* its threshold */
    const uint64_t counters[] = {
        (statistics->bytes_read + 511999) / 512000,
        (statistics->bytes_written + 511999) / 512000,
        statistics->reads,
        statistics->writes,
        0, /* busy time */
        1, /* power cycles */
        0, /* power-on hours */
        0, /* unsafe shutdowns */
        statistics->media_errors,
        c->error_count,
    };
    for (uint32_t i = 0; i < sizeof counters / sizeof counters[0]; i++)
        memcpy(data + 32 + 16 * i, &counters[i], sizeof counters[i]);
    return 512;
}

static uint32_t fill_firmware(uint8_t *data)
{
    data[0] = 1; /* slot 1 is active */
    memset(data + 8, ' ', 8);
    memcpy(data + 8, FIRMWARE_REVISION, strlen(FIRMWARE_REVISION));
    return 512;
}

/* Namespace ids, ended by a zero. */
static uint32_t fill_changed(const struct controller *c, uint8_t *data)
{
    data[0] = c->namespace_changed;
    return 4096;
}

/* Figure 204: one dword a command; bit 0 supported, bit 1 may change user data. */
static uint32_t fill_effects(const struct controller *c, uint8_t *data)
{
    static const uint8_t admin[] = {ADMIN_DELETE_SQ, ADMIN_CREATE_SQ, ADMIN_GET_LOG_PAGE, ADMIN_DELETE_CQ,
                                    ADMIN_CREATE_CQ, ADMIN_IDENTIFY, ADMIN_ABORT, ADMIN_SET_FEATURES,
                                    ADMIN_GET_FEATURES, ADMIN_ASYNC_EVENT, ADMIN_FORMAT};
    static const uint8_t harmless[] = {IO_FLUSH, IO_READ, IO_COMPARE, IO_VERIFY};
    static const uint8_t changing[] = {IO_WRITE, IO_WRITE_ZEROES, IO_DATASET_MANAGEMENT, IO_COPY};
    for (uint32_t i = 0; i < sizeof admin; i++)
        data[4 * admin[i]] = 1;
    if (c->options.shadow_doorbells)
        data[4 * ADMIN_DOORBELL_BUFFER] = 1;
    data[4 * ADMIN_FORMAT] = 0x0b; /* ... and what a namespace can do; bits 18:16 0: no exclusion */
    for (uint32_t i = 0; i < sizeof harmless; i++)
        data[1024 + 4 * harmless[i]] = 1;
    for (uint32_t i = 0; i < sizeof changing; i++)
        data[1024 + 4 * changing[i]] = 3;
    return 4096;
}

uint16_t log_execute(struct controller *c, const struct nvme_command *cmd)
{
    uint8_t data[LOG_MAX_BYTES] = {0};
    uint8_t page = (uint8_t)cmd->cdw10;
    uint64_t wanted = (((uint64_t)(cmd->cdw11 & 0xffff) << 16 | cmd->cdw10 >> 16) + 1) * 4;
    uint64_t offset = cmd->cdw12 | (uint64_t)cmd->cdw13 << 32;
    uint32_t size;
    switch (page) {
    case LOG_ERROR: size = fill_error(c, data); break;
    case LOG_SMART: size = fill_smart(c, data); break;
    case LOG_FIRMWARE: size = fill_firmware(data); break;
    case LOG_CHANGED_NAMESPACES: size = fill_changed(c, data); break;
    case LOG_EFFECTS: size = fill_effects(c, data); break;
    default: return STATUS_INVALID_LOG_PAGE;
    }
    if (page == LOG_SMART && cmd->nsid != 0 && cmd->nsid != NVME_BROADCAST)
        return STATUS_INVALID_FIELD; /* LPA: no page per namespace */
    if (offset & 3 || offset > size)
        return STATUS_INVALID_FIELD;
    /* What lies behind the end of a page is undefined: nothing is written there. */
    uint64_t bytes = wanted < size - offset ? wanted : size - offset;
    uint16_t status = bytes ? data_copy_out(c, cmd, data + offset, bytes) : STATUS_SUCCESS;
    bool retain_event = cmd->cdw10 >> 15 & 1;
    if (!status && !retain_event) {
        events_log_read(c, page);
        if (page == LOG_CHANGED_NAMESPACES)
            c->namespace_changed = false;
    }
    return status;
}
