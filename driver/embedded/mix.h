/* Chance that can be replayed: a hash of a seed and a number (the finalizer of splitmix64). */
#ifndef EMBEDDED_MIX_H
#define EMBEDDED_MIX_H

#include <stdint.h>

static inline uint64_t mix(uint64_t seed, uint64_t number)
{
    uint64_t x = seed + (number + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

#endif
