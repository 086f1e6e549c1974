"""The user's filter expression (`capture.filter`, pcap-filter(7)), applied to frames as they come.

libpcap compiles an expression for one link type at a time.  A file may have frames of several, so
the expression is compiled for each when the first frame of it appears; for Ethernet at once, so
that one that is wrong is told before anything starts.
"""

from gazer.capture.libpcap cimport PCAP_ERRBUF_SIZE, bpf_program
from gazer.capture.source cimport Frame

cdef enum:
    # Link types of one run.  Those that carry IP are a dozen; a pcapng file may claim 65,536, and
    # to compile costs a thousand times what a frame does.
    MAX_LINKTYPES = 64


cdef struct Compiled:
    int linktype            # as a Frame has it
    bint works              # else: no frame of this link type passes
    bint told
    bpf_program program
    char[PCAP_ERRBUF_SIZE] error


cdef class Filter:
    cdef readonly str expression
    cdef bytes octets
    cdef const char* text
    cdef Compiled[MAX_LINKTYPES] known
    cdef int count
    cdef int last           # the one that the last frame needed
    cdef bint too_many      # link types
    cdef bint too_many_told

    cdef bint passes(self, const Frame* frame) noexcept nogil
    cdef str words(self, int number)
    cdef int prepare(self, int linktype) noexcept nogil
