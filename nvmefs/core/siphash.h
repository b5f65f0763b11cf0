/* SipHash-2-4, 64 bits (Aumasson and Bernstein, 2012): a keyed hash that nobody without the key can
 * make collide, for names in directories.
 *
 * Below: bytes.h.  Above: nvmefs/hashing.py.
 */
#ifndef NVMEFS_SIPHASH_H
#define NVMEFS_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
uint64_t siphash(const uint8_t *key, const uint8_t *data, size_t length);
uint64_t siphash_prefixed(const uint8_t *key, uint64_t prefix, const uint8_t *data, size_t length);
/* cffi: end */

#endif
