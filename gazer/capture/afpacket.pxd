"""What is asked of the packet socket under a libpcap handle, that libpcap has no call for
(packet(7), socket(7)).  Linux only.

Filters are put on the socket directly: libpcap's pcap_setfilter() would also apply a new filter to
what stands in the ring already, so that frames which the kernel has counted are never seen.
"""

from libc.stdint cimport uint32_t

cdef enum InterfaceState:
    INTERFACE_UP = 0
    INTERFACE_DOWN          # it is there, and not up
    INTERFACE_GONE          # it is not there any more, though one of that name may be

cdef enum:
    # A protocol that no frame has: a socket bound to it receives nothing.  ETH_P_TR_802_2, for
    # Token Ring, which Linux no longer has.
    NO_PROTOCOL = 0x0011
    MAX_PROGRAM = 4096      # BPF_MAXINSNS


cdef struct Instruction:    # struct sock_filter
    unsigned short code
    unsigned char jt
    unsigned char jf
    uint32_t k


cdef bint afpacket_is(int fd) noexcept nogil

# Each returns 0 or an errno, unless it says otherwise.
cdef int afpacket_attach(int fd, const Instruction* program, unsigned short n) noexcept nogil
cdef int afpacket_attached(int fd, Instruction* program, unsigned int* n) noexcept nogil
cdef int afpacket_drop_all(int fd) noexcept nogil
cdef int afpacket_bind_all(int fd, int* ifindex) noexcept nogil
cdef int afpacket_join(int fd, unsigned short group) noexcept nogil
cdef int afpacket_spread(int fd, const Instruction* program, unsigned short n) noexcept nogil
cdef int afpacket_state(int fd, int ifindex) noexcept nogil
cdef int afpacket_loopback(int fd, int ifindex) noexcept nogil
cdef int afpacket_error(int fd) noexcept nogil
cdef int afpacket_settle() noexcept nogil
