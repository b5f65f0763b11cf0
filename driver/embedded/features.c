/*
 * Set Features and Get Features (sections 5.21 and 5.13). Nothing is saveable: a reset brings the defaults back.
 */
#include "controller.h"

enum {
    FEATURE_ARBITRATION = 0x01,
    FEATURE_POWER = 0x02,
    FEATURE_TEMPERATURE = 0x04,
    FEATURE_ERROR_RECOVERY = 0x05,
    FEATURE_WRITE_CACHE = 0x06,
    FEATURE_QUEUES = 0x07,
    FEATURE_COALESCING = 0x08,
    FEATURE_VECTOR = 0x09,
    FEATURE_WRITE_ATOMICITY = 0x0a,
    FEATURE_ASYNC_EVENTS = 0x0b,
};
enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_CAPABILITIES };

#define CAPABILITY_PER_NAMESPACE 0x2u
#define CAPABILITY_CHANGEABLE 0x4u
#define SAVE (1u << 31)
#define ERROR_RECOVERY_DULBE (1u << 16)
#define VECTOR_COALESCING_DISABLED (1u << 16)

static const struct features DEFAULTS = {.over_temperature = 343, .write_cache = 1};

void features_reset(struct controller *c)
{
    c->features = DEFAULTS;
}

static bool known(uint32_t id)
{
    return (id >= FEATURE_ARBITRATION && id <= FEATURE_ASYNC_EVENTS && id != 0x03);
}

static uint16_t set_temperature(struct controller *c, uint32_t value)
{
    uint32_t kelvin = value & 0xffff, sensor = value >> 16 & 0xf, type = value >> 20 & 0x3;
    if (type > 1)
        return STATUS_INVALID_FIELD;
    if (sensor != 0 && sensor != 0xf)
        return STATUS_INVALID_FIELD; /* only the composite temperature is measured */
    if (type == 0)
        c->features.over_temperature = kelvin;
    else
        c->features.under_temperature = kelvin;
    bool beyond = type == 0 ? TEMPERATURE_KELVIN >= kelvin : TEMPERATURE_KELVIN <= kelvin;
    if (beyond && c->features.async_config & 0x2)
        events_raise(c, (struct async_event){EVENT_SMART, EVENT_SMART_TEMPERATURE, 2});
    return STATUS_SUCCESS;
}

/* Section 5.21.1.7: zero-based counts, completion queues above. Grants what was asked up to what there is. */
static uint16_t set_queues(struct controller *c, uint32_t value, uint32_t *result)
{
    uint32_t submission = value & 0xffff, completion = value >> 16, most = c->options.io_queues - 1;
    if (submission == 0xffff || completion == 0xffff)
        return STATUS_INVALID_FIELD;
    for (uint32_t id = 1; id <= c->options.io_queues; id++) {
        if (c->sqs[id].entries || c->cqs[id].entries)
            return STATUS_SEQUENCE_ERROR;
    }
    submission = submission < most ? submission : most;
    completion = completion < most ? completion : most;
    uint32_t granted = submission | completion << 16;
    c->features.granted_queues = granted + 0x00010001; /* stored one-based, so that zero says "not asked" */
    *result = granted;
    return STATUS_SUCCESS;
}

static uint16_t set_vector(struct controller *c, uint32_t value)
{
    uint32_t vector = value & 0xffff;
    if (vector >= c->options.vectors)
        return STATUS_INVALID_FIELD;
    uint8_t bit = (uint8_t)(1u << vector % 8);
    if (value & VECTOR_COALESCING_DISABLED)
        c->features.vector_config[vector / 8] |= bit;
    else
        c->features.vector_config[vector / 8] &= (uint8_t)~bit;
    return STATUS_SUCCESS;
}

static uint16_t set_write_cache(struct controller *c, uint32_t value)
{
    bool was_on = c->features.write_cache & 1;
    c->features.write_cache = value & 1;
    if (was_on && !(value & 1) && backend_flush(&c->backend))
        return STATUS_WRITE_FAULT;
    return STATUS_SUCCESS;
}

uint16_t features_set(struct controller *c, const struct nvme_command *cmd, uint32_t *result)
{
    uint32_t id = cmd->cdw10 & 0xff, value = cmd->cdw11;
    if (!known(id))
        return STATUS_INVALID_FIELD;
    if (cmd->cdw10 & SAVE)
        return STATUS_FEATURE_NOT_SAVEABLE;
    bool one_namespace = cmd->nsid != 0 && cmd->nsid != NVME_BROADCAST;
    if (one_namespace && id != FEATURE_ERROR_RECOVERY)
        return cmd->nsid == 1 ? STATUS_FEATURE_NOT_PER_NAMESPACE : STATUS_INVALID_NAMESPACE;
    if (one_namespace && cmd->nsid != 1)
        return STATUS_INVALID_NAMESPACE;
    switch (id) {
    case FEATURE_ARBITRATION: c->features.arbitration = value; break;
    case FEATURE_POWER: return value & 0x1f ? STATUS_INVALID_FIELD : STATUS_SUCCESS; /* one state: 0 */
    case FEATURE_TEMPERATURE: return set_temperature(c, value);
    case FEATURE_ERROR_RECOVERY:
        if (value & ERROR_RECOVERY_DULBE) /* not offered by NSFEAT */
            return STATUS_INVALID_FIELD;
        c->features.error_recovery = value & 0xffff;
        break;
    case FEATURE_WRITE_CACHE: return set_write_cache(c, value);
    case FEATURE_QUEUES: return set_queues(c, value, result);
    case FEATURE_COALESCING: c->features.coalescing = value & 0xffff; break; /* a bound that never waits meets */
    case FEATURE_VECTOR: return set_vector(c, value);
    case FEATURE_WRITE_ATOMICITY: c->features.write_atomicity = value & 1; break;
    case FEATURE_ASYNC_EVENTS: c->features.async_config = value & 0x1ff; break; /* OAES offers no more */
    }
    return STATUS_SUCCESS;
}

static uint16_t get_temperature(const struct features *features, uint32_t selector, uint32_t *result)
{
    uint32_t sensor = selector >> 16 & 0xf, type = selector >> 20 & 0x3;
    if (type > 1 || sensor != 0)
        return STATUS_INVALID_FIELD;
    *result = type == 0 ? features->over_temperature : features->under_temperature;
    return STATUS_SUCCESS;
}

uint16_t features_get(struct controller *c, const struct nvme_command *cmd, uint32_t *result)
{
    uint32_t id = cmd->cdw10 & 0xff, select = cmd->cdw10 >> 8 & 0x7;
    if (!known(id) || select > SELECT_CAPABILITIES)
        return STATUS_INVALID_FIELD;
    if (cmd->nsid > 1 && cmd->nsid != NVME_BROADCAST)
        return STATUS_INVALID_NAMESPACE;
    if (select == SELECT_CAPABILITIES) {
        *result = CAPABILITY_CHANGEABLE | (id == FEATURE_ERROR_RECOVERY ? CAPABILITY_PER_NAMESPACE : 0);
        return STATUS_SUCCESS;
    }
    /* Saved values are the defaults where nothing is saveable (section 5.13, SEL). */
    const struct features *features = select == SELECT_CURRENT ? &c->features : &DEFAULTS;
    uint32_t most = c->options.io_queues - 1, vector = cmd->cdw11 & 0xffff;
    switch (id) {
    case FEATURE_ARBITRATION: *result = features->arbitration; break;
    case FEATURE_POWER: *result = 0; break;
    case FEATURE_TEMPERATURE: return get_temperature(features, cmd->cdw11, result);
    case FEATURE_ERROR_RECOVERY: *result = features->error_recovery; break;
    case FEATURE_WRITE_CACHE: *result = features->write_cache; break;
    case FEATURE_QUEUES:
        *result = features->granted_queues ? features->granted_queues - 0x00010001 : most | most << 16;
        break;
    case FEATURE_COALESCING: *result = features->coalescing; break;
    case FEATURE_VECTOR:
        if (vector >= c->options.vectors)
            return STATUS_INVALID_FIELD;
        *result = vector | (features->vector_config[vector / 8] >> vector % 8 & 1 ? VECTOR_COALESCING_DISABLED : 0);
        break;
    case FEATURE_WRITE_ATOMICITY: *result = features->write_atomicity; break;
    case FEATURE_ASYNC_EVENTS: *result = features->async_config; break;
    }
    return STATUS_SUCCESS;
}
