/* The address sanitizer, told where bytes end that lie within a larger block; nothing without it. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define forbid(p, n) __asan_poison_memory_region((p), (n))
#define allow(p, n) __asan_unpoison_memory_region((p), (n))
#endif
#endif
#ifndef forbid
#define forbid(p, n) ((void)(p), (void)(n))
#define allow(p, n) ((void)(p), (void)(n))
#endif
