/* What a thread with a queue pair of its own sleeps on: an epoll instance made by driver/interrupts.py. It becomes
 * readable with the interrupts of the queue pair's vector, which others may share, and when the driver wants something.
 *
 * Below: nothing. Above: perf.h, nvmefs/core/frontend.c.
 *
 *     reap; nothing there -> nv_wakeup_wait(fd, bound), or a poll of one's own and nv_wakeup_clear(fd) -> reap ...
 */
#ifndef NV_WAKEUP_H
#define NV_WAKEUP_H

#include <stdint.h>
#include <sys/epoll.h>

/* Forgets what has woken us; what comes later wakes again. To be called before looking, not after. */
static inline void nv_wakeup_clear(int fd)
{
    struct epoll_event events[2];
    (void)epoll_wait(fd, events, 2, 0); /* both are edge-triggered: this is all they want */
}

/* Sleeps until woken, bound_ns at most, to the millisecond. */
static inline void nv_wakeup_wait(int fd, uint64_t bound_ns)
{
    struct epoll_event events[2];
    (void)epoll_wait(fd, events, 2, (int)((bound_ns + 999999u) / 1000000u));
}

#endif
