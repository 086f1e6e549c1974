"""A source over a network interface; see live.pxd."""

cimport cython
from libc.errno cimport ENETDOWN, ENODEV, ENXIO
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror
from posix.unistd cimport read

from gazer.capture.afpacket cimport (
    INTERFACE_UP, MAX_PROGRAM, NO_PROTOCOL, Instruction, afpacket_attach, afpacket_attached,
    afpacket_bind_all, afpacket_drop_all, afpacket_error, afpacket_is, afpacket_join,
    afpacket_loopback, afpacket_settle, afpacket_spread, afpacket_state)
from gazer.capture.libpcap cimport (
    PCAP_ERRBUF_SIZE, PCAP_ERROR, PCAP_ERROR_IFACE_NOT_UP, PCAP_ERROR_NO_SUCH_DEVICE,
    PCAP_ERROR_PERM_DENIED, PCAP_ERROR_PROMISC_PERM_DENIED, PCAP_NETMASK_UNKNOWN,
    PCAP_TSTAMP_PRECISION_NANO, bpf_program, pcap_activate, pcap_close, pcap_compile, pcap_create,
    pcap_datalink, pcap_dispatch, pcap_fileno, pcap_freecode, pcap_get_tstamp_precision,
    pcap_geterr, pcap_pkthdr, pcap_set_buffer_size, pcap_set_promisc, pcap_set_protocol_linux,
    pcap_set_snaplen, pcap_set_timeout, pcap_set_tstamp_precision, pcap_setfilter,
    pcap_setnonblock, pcap_stat, pcap_stats, pcap_statustostr, u_char)
from gazer.capture.source cimport (
    SOURCE_BROKEN, SOURCE_END, SOURCE_FRAME, SOURCE_IDLE, Frame, Source, linktype_canonical)
from gazer.capture.stream cimport milliseconds

import os
import re

from gazer.capture.fanout import (
    IFINDEX, JEQ, LD_W, OUTGOING, PKTTYPE, RET, fanout_program, packed)
from gazer.errors import CaptureDenied, ConfigError, InputError, InterfaceAbsent

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd* fds, unsigned long count, int timeout)


# What Linux accepts (dev_valid_name), in as many octets as it has for one (IFNAMSIZ).
VALID_NAME = re.compile(rb"[^\0/:\s]{1,15}")


cdef str words(const char* text):
    """libpcap's words as one line."""
    return " ".join((<bytes>text).decode("utf-8", "backslashreplace").split())


cdef unsigned long long ring_bytes(int fd):
    """How large the ring of this socket is.  Where memory is short, libpcap makes it smaller until
    the kernel agrees, and does not say so."""
    inode = os.fstat(fd).st_ino
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            if line.endswith(b"socket:[%d]\n" % inode):
                start, end = line.split(b" ", 1)[0].split(b"-")
                return int(end, 16) - int(start, 16)
    return 0


cdef void hold(u_char* user, const pcap_pkthdr* header, const u_char* data) noexcept nogil:
    """pcap_dispatch's callback: a frame into the batch."""
    cdef Batch* b = <Batch*>user
    cdef Held* h = &b.held[b.count]
    h.at = b.used
    h.caplen = header.caplen if header.caplen < b.snaplen else b.snaplen
    h.length = header.len
    h.time = (<int64_t><uint32_t>header.ts.tv_sec * 1000000000
              + <int64_t><uint32_t>header.ts.tv_usec * b.scale)
    memcpy(b.buffer + b.used, data, h.caplen)
    b.used += (h.caplen + 15) & ~<size_t>15
    b.count += 1


@cython.final
cdef class LiveSource(Source):
    """Frames of one interface, or of `any`.

    snaplen: octets kept of a frame.  buffer_bytes: the kernel's ring.
    promiscuous: take frames for others too (`any` can't).
    filter_of: for a link type, the text of the filter (pcap-filter(7)) for the kernel.
    fanout: (group, seed) of the sockets that share the interface's frames: see fanout.py, whose
        unused_group() finds a group's id; the seed is secret, and the same for all of them.
    wait_ms: how long next() waits.
    wake: an eventfd, not owned, that ends such a wait, and is emptied by it; or -1.
    """

    def __cinit__(self, str interface, *, int snaplen, int buffer_bytes, bint promiscuous,
                  object filter_of, object fanout=None, int wait_ms=100, int wake=-1):
        self.fd = -1
        self.name = interface
        if not 0 < snaplen <= MAX_SNAPLEN:
            raise ValueError(f"snaplen: 1 to {MAX_SNAPLEN}")
        if buffer_bytes < MIN_BUFFER:
            raise ValueError(f"buffer_bytes: {MIN_BUFFER} at least")
        self.snaplen = snaplen
        self.buffer_bytes = buffer_bytes
        self.promiscuous = promiscuous and interface != "any"
        self.filter_of = filter_of
        self.fanout = fanout
        self.wait_ms = wait_ms
        self.wake = wake
        self.ending = SOURCE_FRAME
        self.batch.snaplen = snaplen
        # libpcap's VLAN tag can make a frame longer than snaplen for a moment: hold() cuts it.
        self.batch.buffer = <uint8_t*>malloc(<size_t>BATCH * ((snaplen + 15) & ~15))
        if self.batch.buffer == NULL:
            raise MemoryError()

    def __dealloc__(self):
        self.shut()
        free(self.batch.buffer)

    # --- opening ---

    def open(self):
        """Begin to capture.  May be called again after InterfaceAbsent.

        Raises InterfaceAbsent (there is no such interface, or it is not up), CaptureDenied,
        ConfigError (the filter does not fit this interface's link type), InputError.
        """
        cdef char error[PCAP_ERRBUF_SIZE]
        cdef bytes name = self.name.encode()
        cdef int status
        if self.handle != NULL or self.over != SOURCE_FRAME:
            raise ValueError("it is open, or has been")
        if not VALID_NAME.fullmatch(name) or name in (b".", b".."):
            # libpcap would say that there is none, and it would be waited for.
            raise InputError(f"{self.name!r}: can't be the name of an interface")
        error[0] = 0
        self.handle = pcap_create(name, error)
        if self.handle == NULL:
            raise InputError(f"{self.name}: {words(error)}")
        try:
            pcap_set_snaplen(self.handle, self.snaplen)
            pcap_set_buffer_size(self.handle, self.buffer_bytes)
            pcap_set_promisc(self.handle, self.promiscuous)
            pcap_set_timeout(self.handle, BLOCK_MS)
            pcap_set_protocol_linux(self.handle, NO_PROTOCOL)
            # Where there are none, it stays with microseconds.
            pcap_set_tstamp_precision(self.handle, PCAP_TSTAMP_PRECISION_NANO)
            status = pcap_activate(self.handle)
            if status < 0:
                raise self.refuse(status)
            if status > 0:
                self.warning = f"{self.name}: {words(pcap_geterr(self.handle))}"
            self.fd = pcap_fileno(self.handle)
            if not afpacket_is(self.fd):    # usbmon, nflog, D-Bus, ...: libpcap knows many things
                raise InputError(f"{self.name}: not a network interface")
            if pcap_setnonblock(self.handle, 1, error) < 0:
                raise InputError(f"{self.name}: {words(error)}")
            self.ring_bytes = ring_bytes(self.fd)
            if self.ring_bytes < <unsigned long long>self.buffer_bytes:
                self.warning = (f"{self.name}: the kernel has memory for a buffer of "
                                f"{self.ring_bytes} octets, not of {self.buffer_bytes}")
            self.linktype_ = linktype_canonical(pcap_datalink(self.handle))
            self.batch.scale = 1 if (
                pcap_get_tstamp_precision(self.handle) == PCAP_TSTAMP_PRECISION_NANO) else 1000
            self.begin(self.program())
        except BaseException:
            self.shut()
            raise

    cdef object refuse(self, int status):
        """What to raise for what pcap_activate() returned."""
        said = words(pcap_geterr(self.handle))
        if status == PCAP_ERROR_NO_SUCH_DEVICE:
            return InterfaceAbsent(f"{self.name}: no such interface")
        if status == PCAP_ERROR_IFACE_NOT_UP:
            return InterfaceAbsent(f"{self.name}: the interface is not up")
        if status == PCAP_ERROR_PERM_DENIED or status == PCAP_ERROR_PROMISC_PERM_DENIED:
            return CaptureDenied(
                f"{self.name}: no permission to capture: run it as root, or with CAP_NET_RAW (in a "
                "systemd unit: AmbientCapabilities=CAP_NET_RAW; else: setcap cap_net_raw+ep on the "
                "interpreter that runs it)")
        if not said or status != PCAP_ERROR:
            said = ": ".join(filter(None, [words(pcap_statustostr(status)), said]))
        return InputError(f"{self.name}: {said}")

    cdef bytes program(self):
        """The kernel's filter, translated by libpcap for this handle.  The socket has another."""
        cdef bpf_program compiled
        cdef unsigned int n = 0
        cdef bytes text = self.filter_of(self.linktype_).encode()
        cdef bytes made = bytes(MAX_PROGRAM * sizeof(Instruction))
        cdef int status
        if b"\0" in text:
            raise ConfigError(f"{self.name}: a NUL has no place in a filter")
        if pcap_compile(self.handle, &compiled, text, 1, PCAP_NETMASK_UNKNOWN) < 0:
            raise ConfigError(
                f"{self.name}: the filter does not fit link type {self.linktype_}: "
                f"{words(pcap_geterr(self.handle))}")
        status = pcap_setfilter(self.handle, &compiled)
        pcap_freecode(&compiled)
        if status < 0:
            raise InputError(f"{self.name}: {words(pcap_geterr(self.handle))}")
        self.must(afpacket_attached(self.fd, <Instruction*><char*>made, &n), "the filter")
        if n == 0:      # libpcap would filter by itself
            raise InputError(
                f"{self.name}: the kernel does not take the filter; is it too long for "
                "net.core.optmem_max (sysctl)?")
        if pcap_compile(self.handle, &compiled, b"", 1, PCAP_NETMASK_UNKNOWN) < 0:
            raise InputError(f"{self.name}: {words(pcap_geterr(self.handle))}")
        status = pcap_setfilter(self.handle, &compiled)
        pcap_freecode(&compiled)
        if status < 0:
            raise InputError(f"{self.name}: {words(pcap_geterr(self.handle))}")
        return made[:n * sizeof(Instruction)]

    cdef int begin(self, bytes program) except -1:
        """From a ring that nothing comes into, to one that gets what it shall."""
        cdef const char* text
        cdef int loopback
        self.must(afpacket_drop_all(self.fd), "a filter")
        self.must(afpacket_bind_all(self.fd, &self.ifindex), "the interface")
        loopback = afpacket_loopback(self.fd, self.ifindex)
        if loopback:
            program = packed([
                (LD_W, 0, 0, PKTTYPE), (JEQ, 0, 3, OUTGOING),
                (LD_W, 0, 0, IFINDEX), (JEQ, 0, 1, loopback), (RET, 0, 0, 0)]) + program
        if self.fanout is not None:
            group, seed = self.fanout
            if not 0 <= group <= 0xFFFF:
                raise ValueError("a fanout group's id has 16 bits")
            failed = afpacket_join(self.fd, group)
            if failed:
                raise InputError(
                    f"{self.name}: can't join fanout group {group}: "
                    f"{strerror(failed).decode(errors='replace')}; another program may have a "
                    "group of this number")
            spread = packed(fanout_program(self.linktype_, seed))
            text = spread
            self.must(afpacket_spread(self.fd, <const Instruction*>text,
                                      len(spread) // sizeof(Instruction)), "the fanout program")
        if self.count() != 0:   # where the counters stand before the first frame
            raise InputError(f"{self.name}: {words(pcap_geterr(self.handle))}")
        self.received.total = self.dropped.total = self.missed.total = 0
        self.taken = 0
        text = program
        self.must(afpacket_attach(self.fd, <const Instruction*>text,
                                  len(program) // sizeof(Instruction)), "the filter")
        return 0

    cdef int must(self, int error, object what) except -1:
        if error == ENETDOWN or error == ENODEV or error == ENXIO:
            raise InterfaceAbsent(f"{self.name}: the interface has just gone")
        if error:
            raise InputError(
                f"{self.name}: {what}: {strerror(error).decode(errors='replace')}")
        return 0

    @property
    def linktype(self):
        """The LINKTYPE_ value of its frames, once it is open."""
        return self.linktype_

    # --- reading ---

    cdef int next(self, Frame* frame) noexcept nogil:
        if self.at < self.batch.count:
            return self.give(frame)
        return self.more(frame)

    cdef inline int give(self, Frame* frame) noexcept nogil:
        cdef Held* h = &self.batch.held[self.at]
        self.at += 1
        self.frames += 1
        frame.data = self.batch.buffer + h.at
        frame.caplen = h.caplen
        frame.length = h.length
        frame.time = h.time
        frame.linktype = self.linktype_
        frame.flags = 0
        return SOURCE_FRAME

    cdef int more(self, Frame* frame) noexcept nogil:
        """next(), when the batch is empty."""
        cdef int turn, n, timeout_ms
        if self.over != SOURCE_FRAME:
            return self.over
        if self.handle == NULL:     # not open yet: nobody shall spin
            self.await_frames(self.wait_ms)
            return SOURCE_IDLE
        for turn in range(2):
            n = self.take()
            if n > 0:
                return self.give(frame)
            if n == 0 and self.frames != self.told:
                # Who reads may have something to hand on, which is not to wait with us.
                self.told = self.frames
                return SOURCE_IDLE
            if n < 0:
                self.look()
                if self.ending == SOURCE_FRAME:
                    self.end(SOURCE_BROKEN)
            if self.ending != SOURCE_FRAME and (
                    self.balanced() or milliseconds() >= self.deadline):
                self.over = self.ending
                return self.over
            if turn == 0:
                timeout_ms = self.wait_ms
                if self.ending != SOURCE_FRAME and timeout_ms > BLOCK_MS:
                    timeout_ms = BLOCK_MS
                if not self.await_frames(timeout_ms):
                    break
        self.look()
        return SOURCE_IDLE

    cdef int take(self) noexcept nogil:
        """Fill the batch with what the ring has: how many frames; -1: libpcap reports an error."""
        cdef int result
        self.at = 0
        self.batch.count = 0
        self.batch.used = 0
        result = pcap_dispatch(self.handle, BATCH, hold, <u_char*>&self.batch)
        self.taken += self.batch.count
        return self.batch.count if self.batch.count > 0 or result >= 0 else -1

    cdef int await_frames(self, int timeout_ms) noexcept nogil:
        """True if there may be frames now; False: the time is over, or something else wants us."""
        cdef pollfd[2] p
        cdef uint64_t rung
        p[0].fd = self.fd
        p[1].fd = self.wake
        p[0].events = p[1].events = POLLIN
        p[0].revents = p[1].revents = 0
        if poll(p, 2, timeout_ms) <= 0:
            return False
        if p[1].revents and read(self.wake, &rung, 8) < 0:
            pass        # somebody else has emptied it
        return p[0].revents != 0

    cdef void look(self) noexcept nogil:
        """Nothing to read: how is the interface?"""
        cdef int error
        if self.ending != SOURCE_FRAME:
            return
        error = afpacket_error(self.fd)     # else poll() would come back at once for ever
        if afpacket_state(self.fd, self.ifindex) != INTERFACE_UP:
            self.gone = True
            self.end(SOURCE_BROKEN)
        elif error != 0 and error != ENETDOWN:
            self.failure = error
            self.end(SOURCE_BROKEN)

    cdef void end(self, int result) noexcept nogil:
        """Let no more frames in; when those in the ring have been read, next() has this result."""
        self.ending = result
        afpacket_drop_all(self.fd)
        self.settled = milliseconds()
        if afpacket_settle() != 0:
            # A kernel without that call, or one with `nohz_full`.  A frame is in the ring some
            # microseconds after it passed the filter; so the account is not believed at once.
            self.settled += BLOCK_MS
        self.deadline = self.settled + DRAIN_MS

    cdef bint balanced(self) noexcept nogil:
        """Has everything been read that the kernel has counted?"""
        return (milliseconds() >= self.settled and self.count() == 0
                and self.received.total == self.dropped.total + self.taken)

    def drain(self):
        """Let no more frames in.  next() gives those that are in the ring, then SOURCE_END."""
        if self.handle != NULL and self.ending == SOURCE_FRAME:
            with nogil:
                self.end(SOURCE_END)

    # --- the account ---

    cdef int count(self) noexcept nogil:
        """Bring the counters up to date; -1 if that can't be done."""
        cdef pcap_stat now
        memset(&now, 0, sizeof(now))
        if pcap_stats(self.handle, &now) != 0:
            return -1
        widen(&self.received, now.ps_recv)
        widen(&self.dropped, now.ps_drop)
        widen_drops(&self.missed, now.ps_ifdrop)
        return 0

    def stats(self):
        """(received, dropped, interface_dropped) since it was opened; also after close()."""
        if self.handle != NULL and self.count() != 0:
            raise InputError(f"{self.name}: {words(pcap_geterr(self.handle))}")
        return self.received.total, self.dropped.total, self.missed.total

    cdef object describe(self):
        if self.gone:
            return f"{self.name}: the interface is down, or has gone"
        if self.failure:
            return f"{self.name}: {strerror(self.failure).decode(errors='replace')}"
        return f"{self.name}: {words(pcap_geterr(self.handle))}"

    cpdef void close(self):
        Source.close(self)
        if self.handle != NULL:
            self.count()
        self.shut()

    cdef void shut(self):
        if self.handle != NULL:
            pcap_close(self.handle)
        self.handle = NULL
        self.fd = -1
        self.batch.count = self.at = 0
