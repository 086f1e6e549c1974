"""The user's filter expression; see filter.pxd.

The expression sees a frame as it is on the wire: of a tunnel it tells the outer addresses, of a
datagram in pieces each piece by itself (so `port 53` leaves out all but the first piece of each).

What libpcap does with an expression:
- It may name hosts, which are then looked up by whatever the machine has for that (files, DNS), at
  each compilation.  Numbers need no look-up.
- A program that accepts returns the snaplen of the handle that it was compiled for: with a handle
  of snaplen 0 nothing would pass.
- Link types have two numberings, LINKTYPE_ in files and DLT_ in libpcap's calls.
- What a frame is too short for is not there: the frame does not pass.
- It takes PPP for PPP with address and control octets, and knows no AF_INET6 but this machine's own
  in BSD loopback frames: to an expression, others hold no IP.
"""

from libc.string cimport memset, strncpy

from gazer.capture.libpcap cimport (
    PCAP_ERRBUF_SIZE, PCAP_NETMASK_UNKNOWN, pcap_close, pcap_compile, pcap_freecode,
    pcap_geterr, pcap_offline_filter, pcap_open_dead, pcap_pkthdr, pcap_t, u_char)
from gazer.capture.source cimport Frame

from gazer.config.kinds import printable
from gazer.errors import ConfigError

cdef enum:
    ETHERNET = 1
    SNAPLEN = 262144        # what an accepting program returns: any number but 0


cdef inline int dlt_of(int linktype) noexcept nogil:
    """libpcap's number of a link type: the same but for those of 100 to 103 (pcap-linktype(7))."""
    if linktype == 100:
        return 11           # LLC-encapsulated ATM
    if linktype == 101 or linktype == 14:
        return 12           # raw IP, of which 14 is OpenBSD's number
    if linktype == 102:
        return 15           # BSD/OS SLIP
    if linktype == 103:
        return 16           # BSD/OS PPP
    return linktype


cdef class Filter:
    """A filter expression, ready for frames; ConfigError if it is none (for Ethernet)."""

    def __cinit__(self, str expression):
        self.expression = expression
        self.octets = expression.encode()
        self.text = self.octets
        if b"\0" in self.octets:
            raise ConfigError("capture.filter: a NUL has no place in it")
        cdef int number = self.prepare(ETHERNET)
        if not self.known[number].works:
            raise ConfigError(f"capture.filter: {self.words(number)}")

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            if self.known[i].works:
                pcap_freecode(&self.known[i].program)

    cdef int prepare(self, int linktype) noexcept nogil:
        """Compile it for one more link type; its number."""
        cdef int number = self.count
        cdef Compiled* c = &self.known[number]
        cdef pcap_t* handle = pcap_open_dead(dlt_of(linktype), SNAPLEN)
        self.count += 1
        memset(c, 0, sizeof(Compiled))
        c.linktype = linktype
        if handle == NULL:
            strncpy(c.error, "no memory for it", PCAP_ERRBUF_SIZE - 1)
            return number
        if pcap_compile(handle, &c.program, self.text, 1, PCAP_NETMASK_UNKNOWN) == 0:
            c.works = True
        else:
            strncpy(c.error, pcap_geterr(handle), PCAP_ERRBUF_SIZE - 1)
        pcap_close(handle)
        return number

    cdef bint passes(self, const Frame* frame) noexcept nogil:
        """True if the frame is to be looked at."""
        cdef pcap_pkthdr header
        cdef int i
        if self.known[self.last].linktype != frame.linktype:
            for i in range(self.count):
                if self.known[i].linktype == frame.linktype:
                    break
            else:
                if self.count == MAX_LINKTYPES:
                    self.too_many = True
                    return False
                i = self.prepare(frame.linktype)
            self.last = i
        if not self.known[self.last].works:
            return False
        memset(&header, 0, sizeof(header))
        header.caplen = frame.caplen
        header.len = frame.length
        return pcap_offline_filter(&self.known[self.last].program, &header,
                                   <const u_char*>frame.data) != 0

    cdef str words(self, int number):
        return printable(" ".join(
            (<bytes>self.known[number].error).decode("utf-8", "backslashreplace").split()))

    def complaints(self):
        """What has gone wrong since it was last asked for, a line for each link type."""
        cdef int i
        lines = []
        for i in range(self.count):
            if not self.known[i].works and not self.known[i].told:
                self.known[i].told = True
                lines.append(
                    f"capture.filter does not fit frames of link type {self.known[i].linktype}, "
                    f"so none of them passes: {self.words(i)}")
        if self.too_many and not self.too_many_told:
            self.too_many_told = True
            lines.append(f"capture.filter: frames of more than {MAX_LINKTYPES} link types; those "
                         "of further ones do not pass")
        return lines


def filter_problem(expression):
    """What libpcap has against the expression, as a line that names its key, or None."""
    if expression:
        try:
            Filter(expression)
        except ConfigError as error:
            return str(error)
    return None
