"""See afpacket.pxd."""

from libc.errno cimport errno
from libc.string cimport memset

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    enum:
        AF_PACKET
        SOL_SOCKET
        SO_ERROR
    int bind(int fd, const sockaddr* address, socklen_t length)
    int getsockname(int fd, sockaddr* address, socklen_t* length)
    int getsockopt(int fd, int level, int option, void* value, socklen_t* length)
    int setsockopt(int fd, int level, int option, const void* value, socklen_t length)

cdef extern from "asm/socket.h" nogil:
    enum:
        SO_ATTACH_FILTER
        SO_GET_FILTER

cdef extern from "arpa/inet.h" nogil:
    unsigned short htons(unsigned short value)

cdef extern from "net/if.h" nogil:
    enum:
        IFF_UP
        IFF_LOOPBACK
    struct ifreq:
        int ifr_ifindex
        short ifr_flags

cdef extern from "sys/ioctl.h" nogil:
    enum:
        SIOCGIFNAME
        SIOCGIFFLAGS
    int ioctl(int fd, unsigned long request, void* argument)

cdef extern from "linux/if_ether.h" nogil:
    enum:
        ETH_P_ALL

cdef extern from "linux/if_packet.h" nogil:
    struct sockaddr_ll:
        unsigned short sll_family
        unsigned short sll_protocol
        int sll_ifindex
    enum:
        PACKET_FANOUT
        PACKET_FANOUT_DATA
        PACKET_FANOUT_CBPF

cdef extern from "linux/filter.h" nogil:
    struct sock_filter:
        pass
    struct sock_fprog:
        unsigned short len
        sock_filter* filter

cdef extern from "linux/membarrier.h" nogil:
    enum:
        MEMBARRIER_CMD_GLOBAL

cdef extern from "sys/syscall.h" nogil:
    enum:
        SYS_membarrier

cdef extern from "unistd.h" nogil:
    long syscall(long number, ...)

cdef enum:
    SOL_PACKET = 263        # linux/socket.h, which user space has no copy of


cdef bint afpacket_is(int fd) noexcept nogil:
    """Is it a packet socket at all?"""
    cdef sockaddr_ll address
    cdef socklen_t length = sizeof(address)
    memset(&address, 0, sizeof(address))
    return getsockname(fd, <sockaddr*>&address, &length) == 0 and address.sll_family == AF_PACKET


cdef int put_program(int fd, int level, int option, const Instruction* program,
                     unsigned short n) noexcept nogil:
    cdef sock_fprog f
    memset(&f, 0, sizeof(f))
    f.len = n
    f.filter = <sock_filter*>program
    return errno if setsockopt(fd, level, option, &f, sizeof(f)) != 0 else 0


cdef int afpacket_attach(int fd, const Instruction* program, unsigned short n) noexcept nogil:
    """Let the kernel apply this filter from now on, in place of the one before."""
    return put_program(fd, SOL_SOCKET, SO_ATTACH_FILTER, program, n)


cdef int afpacket_attached(int fd, Instruction* program, unsigned int* n) noexcept nogil:
    """The filter that the kernel applies, into room for MAX_PROGRAM; n is 0 if there is none."""
    cdef socklen_t length = 0
    # The length counts instructions.  Asked for 0 of them, the kernel says how many there are.
    if getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &length) != 0:
        return errno
    if length > 0 and getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program, &length) != 0:
        return errno
    n[0] = length
    return 0


cdef int afpacket_drop_all(int fd) noexcept nogil:
    cdef Instruction none
    memset(&none, 0, sizeof(none))
    none.code = 0x06        # return 0: no octets of it
    return afpacket_attach(fd, &none, 1)


cdef int afpacket_bind_all(int fd, int* ifindex) noexcept nogil:
    """Receive frames of all protocols, from the interface that the socket is bound to already;
    its index, or 0 for all interfaces."""
    cdef sockaddr_ll address
    cdef socklen_t length = sizeof(address)
    memset(&address, 0, sizeof(address))
    if getsockname(fd, <sockaddr*>&address, &length) != 0:
        return errno
    ifindex[0] = address.sll_ifindex
    address.sll_family = AF_PACKET
    address.sll_protocol = htons(ETH_P_ALL)
    if bind(fd, <sockaddr*>&address, sizeof(address)) != 0:
        return errno
    return afpacket_error(fd)


cdef int afpacket_join(int fd, unsigned short group) noexcept nogil:
    """Become one of the sockets of a fanout group, which a program spreads frames over."""
    cdef int value = group | PACKET_FANOUT_CBPF << 16
    return errno if setsockopt(fd, SOL_PACKET, PACKET_FANOUT, &value, sizeof(value)) != 0 else 0


cdef int afpacket_spread(int fd, const Instruction* program, unsigned short n) noexcept nogil:
    """Let this program spread the frames over the socket's group, in place of the one before.
    Until there is one, all go to the first socket."""
    return put_program(fd, SOL_PACKET, PACKET_FANOUT_DATA, program, n)


cdef int afpacket_state(int fd, int ifindex) noexcept nogil:
    """An InterfaceState.  ifindex: of the interface that the socket was bound to; 0: all.

    By index, since another interface may have the name by now; a socket whose interface has gone
    is bound to index -1."""
    cdef sockaddr_ll address
    cdef socklen_t length = sizeof(address)
    cdef ifreq request
    if ifindex <= 0:
        return INTERFACE_UP
    memset(&address, 0, sizeof(address))
    if getsockname(fd, <sockaddr*>&address, &length) != 0 or address.sll_ifindex != ifindex:
        return INTERFACE_GONE
    memset(&request, 0, sizeof(request))
    request.ifr_ifindex = ifindex
    if ioctl(fd, SIOCGIFNAME, &request) != 0 or ioctl(fd, SIOCGIFFLAGS, &request) != 0:
        return INTERFACE_GONE
    return INTERFACE_UP if request.ifr_flags & IFF_UP else INTERFACE_DOWN


cdef int afpacket_loopback(int fd, int ifindex) noexcept nogil:
    """The index of the loopback interface, if that is what the socket is bound to, or is among
    all of them; else 0."""
    cdef ifreq request
    memset(&request, 0, sizeof(request))
    # Each network namespace has one, it is made first and can't be deleted.
    request.ifr_ifindex = ifindex if ifindex > 0 else 1
    if ioctl(fd, SIOCGIFNAME, &request) != 0 or ioctl(fd, SIOCGIFFLAGS, &request) != 0:
        return 0
    if not request.ifr_flags & IFF_LOOPBACK:
        return 0
    return ifindex if ifindex > 0 else 1


cdef int afpacket_error(int fd) noexcept nogil:
    """The error that waits at the socket (and no longer does), or 0."""
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    if getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0:
        return errno
    return error


cdef int afpacket_settle() noexcept nogil:
    """Wait until no frame is on its way into a socket by a filter that has been replaced.

    The kernel handles a frame, from filter to ring, within one read-side section of RCU; this
    membarrier(2) returns when all of those that had begun have ended."""
    return errno if syscall(SYS_membarrier, <long>MEMBARRIER_CMD_GLOBAL, <long>0, <long>0) else 0
