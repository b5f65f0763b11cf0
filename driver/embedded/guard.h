/*
 * Host memory that is taken away under the controller. A served client maps files of its own for DMA; when it cuts
 * one short, the next touch of what is gone is SIGBUS. That must be the client's loss, not the server's end: pages of
 * zeroes take the place of those that are gone, and the controller reports a fatal status.
 *
 * Only the controller's thread, and only addresses in its DMA regions; any other SIGBUS goes where it went before.
 */
#ifndef EMBEDDED_GUARD_H
#define EMBEDDED_GUARD_H

#include "controller.h"

/* For the whole process. 0 or a negative errno. */
int guard_install(void);
/* The calling thread is this controller's from now on. */
void guard_thread(struct controller *c);
/* Has memory gone since the last call? */
bool guard_tripped(void);

#endif
