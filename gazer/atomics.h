/* Loads, stores and the fence that the rings and the ledger need; C11 memory order, by the
 * compiler's builtins, which work on plain integers in shared memory. */
#ifndef GAZER_ATOMICS_H
#define GAZER_ATOMICS_H
#include <stdint.h>

static inline uint64_t load_acquire(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline uint64_t load_relaxed(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline uint32_t load_word(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline void store_release(uint64_t *p, uint64_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static inline void store_relaxed(uint64_t *p, uint64_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}

static inline void full_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void acquire_fence(void)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

static inline void release_fence(void)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void prefetch(const void *p)
{
    __builtin_prefetch(p, 1, 1);
}

/* ... to be read only. */
static inline void prefetch_read(const void *p)
{
    __builtin_prefetch(p, 0, 3);
}

#endif
