"""A rehearsal of decoding and encoding; nothing of it is for others than gazer.workers.warm."""
