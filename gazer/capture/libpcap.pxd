"""libpcap's declarations: the one place that knows where they come from.

Most are python-libpcap's (`pylibpcap/pcap.pxd`).  A cimport of extern declarations leaves nothing
behind at run time, so python-libpcap is needed to build gazer, not to run it.

Redeclared here is what that file lacks, or what it does not mark `nogil` and the hot path calls.

Its `pcap_pkthdr.ts` is declared with unsigned fields; in C they are a `struct timeval`'s signed
longs.  Read them into a uint32_t: that gives back the 32 bits of the file, whatever libpcap made
of their sign.
"""

from libc.stdio cimport FILE
from pylibpcap.pcap cimport (
    bpf_insn, bpf_u_int32, pcap_activate, pcap_create, pcap_datalink, pcap_datalink_val_to_name,
    pcap_lib_version, pcap_pkthdr, pcap_set_promisc, pcap_set_snaplen, pcap_set_timeout,
    pcap_setnonblock, pcap_snapshot, pcap_stat, pcap_t, u_char,
)

ctypedef void (*pcap_callback)(u_char* user, const pcap_pkthdr* header,
                               const u_char* data) noexcept nogil


cdef extern from "pcap.h" nogil:
    enum:
        PCAP_ERRBUF_SIZE
        PCAP_ERROR                  # -1
        PCAP_ERROR_BREAK            # -2: from pcap_next_ex over a file, the end of the file
        PCAP_ERROR_NO_SUCH_DEVICE
        PCAP_ERROR_PERM_DENIED
        PCAP_ERROR_IFACE_NOT_UP
        PCAP_ERROR_PROMISC_PERM_DENIED
        PCAP_TSTAMP_PRECISION_MICRO
        PCAP_TSTAMP_PRECISION_NANO

    pcap_t* pcap_fopen_offline_with_tstamp_precision(FILE* file, unsigned int precision,
                                                     char* errbuf)
    int pcap_next_ex(pcap_t* p, pcap_pkthdr** header, const u_char** data)
    int pcap_dispatch(pcap_t* p, int count, pcap_callback callback, u_char* user)
    int pcap_stats(pcap_t* p, pcap_stat* stats)

    int pcap_set_buffer_size(pcap_t* p, int bytes)
    int pcap_set_tstamp_precision(pcap_t* p, int precision)
    int pcap_get_tstamp_precision(pcap_t* p)
    int pcap_set_protocol_linux(pcap_t* p, int protocol)
    int pcap_fileno(pcap_t* p)
    const char* pcap_statustostr(int status)

    void pcap_close(pcap_t* p)
    char* pcap_geterr(pcap_t* p)

    const bpf_u_int32 PCAP_NETMASK_UNKNOWN
    struct bpf_program:
        unsigned int bf_len
        bpf_insn* bf_insns
    pcap_t* pcap_open_dead(int linktype, int snaplen)
    int pcap_compile(pcap_t* p, bpf_program* program, const char* text, int optimize,
                     bpf_u_int32 netmask)
    void pcap_freecode(bpf_program* program)
    int pcap_setfilter(pcap_t* p, bpf_program* program)
    int pcap_offline_filter(const bpf_program* program, const pcap_pkthdr* header,
                            const u_char* data)
