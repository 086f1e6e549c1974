"""A door for tests: a worker that can be killed between any two steps.

Its parts are the sensor's own, which tell of each step before and after they do it.  What is told
is the step's name, to a function of the test's, which may kill the process, or copy the shared
memory: that is then what a kill at this point would have left.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gazer.counters cimport WORD_COMMITS, Bank, Slot
from gazer.entry cimport FrameEntry
from gazer.workers.emitter cimport Emitter
from gazer.workers.engine cimport Engine
from gazer.workers.exchange cimport Exchange
from gazer.workers.intake cimport Intake
from gazer.workers.matcher cimport Due, Matcher, Origin

# What is called at each step.
cdef object TELL = None


def listen(tell):
    """From now on tell(name) is called at each step; None: nothing is."""
    global TELL
    TELL = tell


cdef void at(str step) noexcept with gil:
    if TELL is not None:
        TELL(step)


cdef class MortalSlot(Slot):
    cdef void commit(self) noexcept nogil:
        cdef uint64_t n = self.words[WORD_COMMITS] + 1
        with gil:
            at("before commit")
        # What a kill within the copy leaves.
        memcpy(&self.banks[n & 1], &self.own, sizeof(Bank) // 3)
        with gil:
            at("within commit")
        Slot.commit(self)
        with gil:
            at("after commit")


cdef class MortalIntake(Intake):
    cdef void release(self) noexcept nogil:
        with gil:
            at("before release")
        Intake.release(self)
        with gil:
            at("after release")


cdef class MortalEmitter(Emitter):
    cdef void show(self) noexcept nogil:
        with gil:
            at("before show")
        Emitter.show(self)
        with gil:
            at("after show")

    cdef void mark(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        with gil:
            at("before mark")
        Emitter.mark(self, clock, sequence)
        with gil:
            at("after mark")

    cdef void tear(self) noexcept nogil:
        with gil:
            at("before tear")
        Emitter.tear(self)
        with gil:
            at("after tear")

    cdef void rest(self, uint32_t n) noexcept nogil:
        with gil:
            at("waiting")
        Emitter.rest(self, n)

    cdef void tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil:
        with gil:
            at("before event")
        Emitter.tx(self, x, clock, sequence)
        with gil:
            at("after event")


cdef class MortalMatcher(Matcher):
    cdef void message(self, const Origin* o, const uint8_t* wire, uint32_t length) noexcept nogil:
        with gil:
            at("before message")
        Matcher.message(self, o, wire, length)
        with gil:
            at("after message")

    cdef void expire(self, const Due* due) noexcept nogil:
        with gil:
            at("before expiry")
        Matcher.expire(self, due)
        with gil:
            at("after expiry")


cdef class MortalEngine(Engine):
    """An Engine; give it a MortalSlot."""

    make_intake = staticmethod(MortalIntake)
    make_emitter = staticmethod(MortalEmitter)
    make_matcher = staticmethod(MortalMatcher)

    cdef void handle(self, const FrameEntry* f, const uint8_t* frame, int lane) noexcept nogil:
        with gil:
            at("before frame")
        Engine.handle(self, f, frame, lane)
        with gil:
            at("after frame")
