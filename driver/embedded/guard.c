#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#define PAGE_BYTES 4096u

static struct sigaction before;
static __thread const struct controller *guarded;
static __thread volatile sig_atomic_t tripped;

static bool in_dma_memory(const uint8_t *page)
{
    const struct dma_table *table = guarded ? guarded->dma : NULL;
    for (uint32_t i = 0; table && i < table->count; i++) {
        const struct dma_region *region = &table->regions[i];
        if (page >= region->host && page < region->host + region->length)
            return true;
    }
    return false;
}

/* The access that failed is made again after the return: to the page of zeroes, or as if we had never been here. */
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    int saved = errno;
    uint8_t *page = (uint8_t *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE_BYTES - 1));
    if (in_dma_memory(page) && mmap(page, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                                    -1, 0) != MAP_FAILED)
        tripped = 1;
    else
        sigaction(number, &before, NULL);
    errno = saved;
}

int guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    struct sigaction present;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, NULL, &present))
        return -errno;
    if (present.sa_flags & SA_SIGINFO && present.sa_sigaction == on_bus_error)
        return 0;
    before = present;
    return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}

void guard_thread(struct controller *c)
{
    guarded = c;
    tripped = 0;
}

bool guard_tripped(void)
{
    bool was = tripped;
    tripped = 0;
    return was;
}
