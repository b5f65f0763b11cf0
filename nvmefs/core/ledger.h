/* What has been written to a drive, and how much of it is durable: a Flush covers the writes that had completed when it
 * was submitted, whoever wrote them. One ledger for a device, shared by Python and the threads of the front end.
 *
 *     ledger_wrote(l)                        a write has completed; before anybody is told
 *     ticket = ledger_written(l)             later: these writes have to be durable
 *     if (ledger_flushed(l) < ticket)
 *         covers = ledger_written(l), a Flush is submitted and completes, ledger_cover(l, covers)
 *
 * A Flush that failed for good is noted with ledger_fail(): nobody knows what of the cache was lost, so from then on
 * nothing more counts as flushed.
 *
 * Below: nothing.  Above: device.py, sync.c.
 */
#ifndef NVMEFS_LEDGER_H
#define NVMEFS_LEDGER_H

#include <stdint.h>

/* cffi: begin */
struct ledger *ledger_new(void);
void ledger_free(struct ledger *l);
void ledger_wrote(struct ledger *l);
uint64_t ledger_written(struct ledger *l);
void ledger_cover(struct ledger *l, uint64_t covers);
uint64_t ledger_flushed(struct ledger *l);
void ledger_fail(struct ledger *l);
int ledger_failed(struct ledger *l);
/* cffi: end */

#endif
