"""Octets of TCP streams that have to wait; see pieces.pxd.

`count` is everywhere the number of chunks of the connection for which something is done.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove

from gazer.block cimport block_free, block_reserve

assert sizeof(Chunk) == CHUNK


cdef inline uint32_t least(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef class Pieces:
    """All chunks of one worker."""

    def __cinit__(self, *, max_bytes, max_bytes_each):
        self.max_bytes = max_bytes
        self.max_each = min(max_bytes_each // CHUNK, (1 << 31) - 1)
        self.reserved = <size_t>(min(max_bytes // CHUNK, (1 << 31) - 1) + 1) * CHUNK
        self.chunks = <uint8_t*>block_reserve(self.reserved, "TCP streams")
        self.touched = 1

    def __dealloc__(self):
        block_free(self.chunks, self.reserved)

    cdef Chunk* at(self, uint32_t index) noexcept nogil:
        return <Chunk*>(self.chunks + <size_t>index * CHUNK)

    cdef bint has_room(self, uint32_t chunks) noexcept nogil:
        """True if there is room for so many more, whoever wants them."""
        return (<uint64_t>self.used + chunks) * CHUNK <= self.max_bytes

    cdef uint32_t take(self, uint32_t* count) noexcept nogil:
        """An empty chunk; 0 if the connection's room ends, or all room does."""
        cdef uint32_t index
        cdef Chunk* k
        if count[0] >= self.max_each or not self.has_room(1):
            return 0
        index = self.free_chunks
        if index:
            self.free_chunks = self.at(index).next
        else:
            index = self.touched
            self.touched += 1
        self.used += 1
        count[0] += 1
        k = self.at(index)
        k.next = k.next_run = 0
        k.begin = k.end = 0
        return index

    cdef void give(self, uint32_t index, uint32_t* count) noexcept nogil:
        self.at(index).next = self.free_chunks
        self.free_chunks = index
        self.used -= 1
        count[0] -= 1

    cdef uint32_t append(self, uint32_t* run, uint32_t sequence, const uint8_t* octets, uint32_t n,
                         uint32_t* count) noexcept nogil:
        """Octets at the end of the run, which begins with them (at `sequence`) if it is 0.

        Returns how many there was room for.
        """
        cdef uint32_t done = 0, size, index
        cdef Chunk* first
        cdef Chunk* last
        if run[0] == 0:
            index = self.take(count)
            if index == 0:
                return 0
            run[0] = index
            first = self.at(index)
            first.sequence = sequence
            first.length = 0
            first.last = index
        first = self.at(run[0])
        last = self.at(first.last)
        while True:
            size = least(n - done, CHUNK_OCTETS - last.end)
            memcpy(last.octets + last.end, octets + done, size)
            last.end += <uint16_t>size
            done += size
            if done == n:
                break
            index = self.take(count)
            if index == 0:
                break
            last.next = index
            first.last = index
            last = self.at(index)
        first.length += done
        return done

    cdef void adopt(self, uint32_t* run, uint32_t index, uint32_t* count) noexcept nogil:
        """The chunk's octets at the end of the run, the chunk itself where they do not fit."""
        cdef Chunk* k = self.at(index)
        cdef Chunk* first
        cdef Chunk* last
        cdef uint32_t size
        k.next = 0
        if run[0] == 0:
            run[0] = index
            k.next_run = 0
            k.length = k.end - k.begin
            k.last = index
            return
        first = self.at(run[0])
        last = self.at(first.last)
        size = least(k.end - k.begin, CHUNK_OCTETS - last.end)
        memcpy(last.octets + last.end, k.octets + k.begin, size)
        last.end += <uint16_t>size
        first.length += k.end - k.begin
        k.begin += <uint16_t>size
        if k.begin == k.end:
            self.give(index, count)
            return
        k.end -= k.begin            # to the front: what follows shall fill the chunk
        memmove(k.octets, k.octets + k.begin, k.end)
        k.begin = 0
        last.next = index
        first.last = index

    cdef uint32_t copy(self, uint32_t run, uint8_t* to, uint32_t n) noexcept nogil:
        """The run's first n octets, or all it has; returns how many."""
        cdef uint32_t done = 0, size
        cdef Chunk* k
        while run and done < n:
            k = self.at(run)
            size = least(n - done, k.end - k.begin)
            memcpy(to + done, k.octets + k.begin, size)
            done += size
            run = k.next
        return done

    cdef void drop(self, uint32_t* run, uint32_t n, uint32_t* count) noexcept nogil:
        """The run loses its first n octets, at most all; then it is 0."""
        cdef Chunk* k = self.at(run[0])
        cdef Chunk* next
        cdef uint32_t size, index
        while True:
            size = least(n, k.end - k.begin)
            k.begin += <uint16_t>size
            k.length -= size
            k.sequence += size
            n -= size
            if k.begin < k.end:
                return
            index = run[0]
            run[0] = k.next
            if k.next == 0:
                self.give(index, count)
                return
            next = self.at(k.next)
            next.next_run = k.next_run
            next.sequence = k.sequence
            next.length = k.length
            next.last = k.last
            self.give(index, count)
            k = next

    cdef uint32_t free_run(self, uint32_t* run, uint32_t* count) noexcept nogil:
        """The run is gone; returns how many octets it had, and sets it to the one behind it."""
        cdef uint32_t index = run[0], following, length = 0
        if index == 0:
            return 0
        length = self.at(index).length
        run[0] = self.at(index).next_run
        while index:
            following = self.at(index).next
            self.give(index, count)
            index = following
        return length

    cdef void join(self, uint32_t run, uint32_t* count) noexcept nogil:
        """The run and the next one, which begins where it ends, become one."""
        cdef Chunk* a = self.at(run)
        cdef uint32_t index = a.next_run
        cdef Chunk* b = self.at(index)
        cdef Chunk* last = self.at(a.last)
        cdef uint32_t size = b.end - b.begin
        a.next_run = b.next_run
        a.length += b.length
        if b.next == 0 and last.end + size <= CHUNK_OCTETS:
            # Else a hole that is filled octet by octet would leave a chunk for each.
            memcpy(last.octets + last.end, b.octets + b.begin, size)
            last.end += <uint16_t>size
            self.give(index, count)
        else:
            last.next = index
            a.last = b.last

    cdef uint32_t keep(self, uint32_t* ahead, uint16_t* runs, uint32_t next, uint32_t sequence,
                       const uint8_t* octets, uint32_t n, uint32_t* count,
                       uint32_t* old) noexcept nogil:
        """Keep what of these octets is not kept yet; all of them lie ahead of `next`.

        Returns how many are dealt with: less than n if room, or the number of runs, ends.  Those
        that were there already are added to `old`.
        """
        cdef uint32_t done = 0, before = 0, behind = ahead[0], at, end, size, got, run
        cdef Chunk* k
        while done < n:
            at = sequence + done - next
            while behind:
                k = self.at(behind)
                end = k.sequence - next + k.length
                if end > at:
                    break
                before = behind
                behind = k.next_run
            size = n - done
            if behind:
                if k.sequence - next <= at:
                    size = least(size, end - at)
                    old[0] += size
                    done += size
                    continue
                size = least(size, k.sequence - next - at)
            if before and self.at(before).sequence - next + self.at(before).length == at:
                got = self.append(&before, 0, octets + done, size, count)
            else:
                if runs[0] >= MAX_RUNS:
                    return done
                run = 0
                got = self.append(&run, sequence + done, octets + done, size, count)
                if run == 0:
                    return done
                self.at(run).next_run = behind
                if before:
                    self.at(before).next_run = run
                else:
                    ahead[0] = run
                before = run
                runs[0] += 1
            done += got
            if got < size:
                return done
            if behind and sequence + done == self.at(behind).sequence:
                size = least(n - done, self.at(behind).length)
                old[0] += size
                done += size
                self.join(before, count)
                runs[0] -= 1
                behind = self.at(before).next_run
        return done
