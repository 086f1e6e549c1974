"""An independent reading of captures: what gazer's output must be.

Plain, slow Python, written from the RFCs, on dnspython and the standard library; it shares
no code with gazer and none of its parsers were read for it. Tests compare the pipeline's whole
output with it.

    capture.py   file → frames → UDP packets, or the reason why not
    message.py   one DNS message → its records in presentation format, in one normal form
    events.py    packets → transactions and events, in their order
    compare.py   events → text lines; a readable difference of two outputs
    build.py     the other way: frames, messages and capture files made by hand, for tests

An ordinary use, in a test:

    from tests.oracle import build, compare

    build.write_pcap(path, [(ts_ns, build.frame(build.udp(client, 4000, server, 53, query)))])
    assert compare.diff(compare.expected_lines(path), actual_lines) == ""
"""
