"""An independent reading of captures: what gazer's output must be.

Plain, slow Python, written from the RFCs, on dnspython and the standard library; it shares
no code with gazer and none of its parsers were read for it. Tests compare the pipeline's whole
output with it.

    rules.py      what a run was told: the configuration
    capture.py    file → frames, the sensor clock, link layers
    packets.py    tunnels and IP → UDP datagrams, TCP segments, pieces, or the reason why not
    parts.py      what that gives: a packet with the levels around it, a piece, a reason
    fragments.py  pieces → IP datagrams
    streams.py    segments → octets in order, gaps and ends; framing.py: those → messages
    message.py    one DNS message → its records; rdata.py: their data, in one normal form
    transfers.py  where a zone transfer ends
    events.py     messages → transactions and events, in their order; fields.py: what they say
    compare.py    events → text lines; a readable difference of two outputs
    build.py      the other way: frames, messages and capture files made by hand, for tests
    wraps.py      likewise tunnels, fragments and TCP connections

An ordinary use, in a test:

    from tests.oracle import build, compare

    build.write_pcap(path, [(ts_ns, build.frame(build.udp(client, 4000, server, 53, query)))])
    assert compare.diff(compare.expected_lines(path), actual_lines) == ""
"""
