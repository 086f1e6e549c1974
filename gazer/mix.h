/* The mixing step of every hash here: the 128-bit product folded to 64 bits. */
#ifndef GAZER_MIX_H
#define GAZER_MIX_H
#include <stdint.h>

static inline uint64_t fold_multiply(uint64_t a, uint64_t b)
{
    unsigned __int128 p = (unsigned __int128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

#endif
