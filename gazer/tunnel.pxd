"""The headers of encapsulations, and the packets that ICMP errors quote.

Each function reads one header with the cursor behind what announced it, and says in `Inner` what
stands behind.  It knows nothing of levels, limits and rules: packet.pyx does.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gazer.cursor cimport Cursor, cursor_skip, cursor_take

cdef enum:          # EtherTypes, then IP protocols
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_QINQ = 0x88A8
    ETHERTYPE_QINQ_OLD = 0x9100
    ETHERTYPE_MPLS = 0x8847
    ETHERTYPE_MPLS_UPSTREAM = 0x8848
    ETHERTYPE_ETHERNET = 0x6558     # "transparent Ethernet bridging"
    ETHERTYPE_PPP = 0x880B
    ETHERTYPE_PPPOE_SESSION = 0x8864
    ICMP = 1
    ICMP_6 = 58
    PROTOCOL_IPV4 = 4
    PROTOCOL_IPV6 = 41
    PROTOCOL_GRE = 47
    FRAGMENT_HEADER = 44

cdef enum:          # Next: what stands behind a header
    NOTHING = 0         # that we know
    IPV4
    IPV6
    ANY_IP              # by the version in the header
    ETHERNET
    ETHERTYPE           # Inner.ethertype, already read, says what follows
    PPP                 # its protocol field follows
    PPP_FRAMED          # the same, behind HDLC's address and control if they are not left out

cdef enum:          # Opening
    OPEN = 0
    CLOSED              # for all we know sound, but nothing that we open: counts as if it were none
    BROKEN              # breaks off, or can't be right

cdef enum:
    NO_LENGTH = 0xFFFFFFFF
    MAX_LABELS = 16     # of an MPLS stack; real ones have two or three


cdef struct Inner:
    int next            # Next
    uint16_t ethertype
    uint8_t kind        # Encapsulation
    bint has_id
    uint32_t id
    uint32_t length     # of what follows, if the header says so; else NO_LENGTH


cdef struct Ports:
    # As they stand in the first four octets of UDP and TCP.
    uint16_t source
    uint16_t destination


cdef int mpls_open(Cursor* c, Inner* inner) noexcept nogil
cdef int mpls_inside(Cursor* c, Inner* inner) noexcept nogil
cdef int pppoe_open(Cursor* c, Inner* inner) noexcept nogil
cdef int ppp_inside(Cursor* c, bint framed) noexcept nogil
cdef int gre_open(Cursor* c, Inner* inner) noexcept nogil
cdef int vxlan_open(Cursor* c, Inner* inner) noexcept nogil
cdef int geneve_open(Cursor* c, Inner* inner) noexcept nogil
cdef int ports_behind(Cursor* c, bint v6, int protocol, Ports* ports) noexcept nogil
cdef int icmp_quotes(Cursor* c, bint v6, Ports* ports) noexcept nogil


cdef inline int extension_skip(Cursor* c, uint8_t kind) noexcept nogil:
    """Step over an IPv6 extension header that is no fragment header; the next header's number, or
    -1 where it breaks off."""
    cdef const uint8_t* p = cursor_take(c, 2)
    cdef uint32_t size
    if p == NULL:
        return -1
    if kind == 51:
        size = (p[1] + 2) * 4 - 2   # 4-byte units, less two (RFC 4302, section 2.2)
    else:
        size = p[1] * 8 + 6         # 8-byte units, without the first
    return p[0] if cursor_skip(c, size) else -1


cdef inline bint is_extension(uint8_t protocol) noexcept nogil:
    """An IPv6 extension header that can be stepped over: hop-by-hop, routing, AH, destination,
    mobility, HIP, shim6."""
    return protocol in (0, 43, 51, 60, 135, 139, 140)
