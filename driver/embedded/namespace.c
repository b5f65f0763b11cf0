/*
 * The namespace as a whole: formatted anew by the host (Format NVM, section 5.23 of 1.4), or grown from outside, which
 * the host is told of by an asynchronous event. The format lasts as long as the controller: an image has no place to
 * note it.
 */
#include <errno.h>

#include "controller.h"

enum { FORMAT_512 = 0, FORMAT_4096 = 1 };
enum { ERASE_NONE = 0, ERASE_USER_DATA = 1 };
#define NOTICE_NAMESPACE (1u << 8) /* Asynchronous Event Configuration */

uint32_t namespace_format_index(const struct controller *c)
{
    return c->block_bits == 9 ? FORMAT_512 : FORMAT_4096;
}

static void take_size(struct controller *c)
{
    c->block_count = c->options.image_bytes >> c->block_bits;
}

/* Whatever the host asks to be erased, everything reads as zeroes afterwards. */
uint16_t namespace_format(struct controller *c, const struct nvme_command *cmd)
{
    uint32_t format = cmd->cdw10 & 0xf, protection = cmd->cdw10 >> 4 & 0x1f, erase = cmd->cdw10 >> 9 & 0x7;
    if (cmd->nsid != 1 && cmd->nsid != NVME_BROADCAST)
        return STATUS_INVALID_NAMESPACE;
    if (c->options.read_only)
        return STATUS_WRITE_PROTECTED;
    if (format > FORMAT_4096 || protection || (format == FORMAT_4096 && c->options.image_bytes < 4096))
        return STATUS_INVALID_FORMAT;
    if (erase > ERASE_USER_DATA)
        return STATUS_INVALID_FIELD; /* nothing is encrypted, so no key can be thrown away */
    if (backend_zero(&c->backend, 0, c->options.image_bytes, true) || backend_flush(&c->backend)) {
        COUNT(c, media_errors, 1);
        return STATUS_WRITE_FAULT;
    }
    c->options.lba_bytes = format == FORMAT_512 ? 512 : 4096;
    c->block_bits = format == FORMAT_512 ? 9 : 12;
    take_size(c);
    return STATUS_SUCCESS;
}

static void resize(struct controller *c, void *argument)
{
    c->options.image_bytes = *(const uint64_t *)argument;
    take_size(c);
    c->namespace_changed = true;
    if (c->enabled && c->features.async_config & NOTICE_NAMESPACE)
        events_raise(c, (struct async_event){EVENT_NOTICE, EVENT_NAMESPACE_CHANGED, LOG_CHANGED_NAMESPACES});
}

int controller_resize(struct controller *c, uint64_t image_bytes)
{
    if (image_bytes < c->options.lba_bytes)
        return -EINVAL;
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, resize, &image_bytes);
    pthread_mutex_unlock(&c->host_lock);
    return 0;
}
