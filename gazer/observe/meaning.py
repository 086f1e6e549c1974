"""What each counter of the ledger means, in a few words: for `gazer stats` and for Prometheus.

docs/metrics.md is made of these (python -m gazer.docgen); docs/operations.md says at more length
what to do about them. A counter that is one of a family ("fate.dns") has the family's text.
"""

from __future__ import annotations

from collections.abc import Mapping

CAPTURE = {
    "frames": "frames read",
    "bytes": "bytes of them, as captured",
    "delivered": "frames given to a worker",
    "ring_dropped": "frames dropped because the worker's ring was full",
    "clock_jumps": "times the sensor clock was re-based",
    "bad_time": "frames with an impossible timestamp",
    "snapped": "frames of which the capture holds only a part",
    "waits": "times the capture waited for room in a ring",
    "datagrams": "IP datagrams put together from their pieces",
    "joined": "pieces that became part of a datagram",
    "foreign": "pieces of datagrams that are no DNS",
    "duplicate_pieces": "pieces that were held already",
    "overlapping": "pieces of datagrams whose pieces contradict one another",
    "bad_pieces": "pieces whose place or length can't be, or that were cut",
    "expired_pieces": "pieces of datagrams that were not whole in time",
    "evicted_pieces": "pieces thrown away because a limit was reached",
    "waiting_pieces": "pieces that wait for the rest of their datagram now",
    "tunnelled": "DNS frames that came in an encapsulation",
    "input_bytes": "bytes of the capture files, as they are on disk, read so far",
    "kernel_received": "frames that passed the kernel's filter",
    "kernel_dropped": "frames that had no room in the kernel's buffer",
    "kernel_lost": "frames that stood in the kernel's buffer when a capture process died",
    "interface_dropped": "frames that the network card could not take",
    "lost_pieces": "pieces that waited in a capture process that died",
    "absent": "1 while the interface is waited for",
    "fate": "frames that did not become DNS messages, by reason",
}

WORKER = {
    "frames": "frames taken from the rings",
    "datagrams": "frames with a message in UDP",
    "segments": "frames with a TCP segment",
    "stream_messages": "messages put together from segments",
    "streams": "TCP connections known now",
    "streams_opened": "TCP connections of which something was seen",
    "streams_evicted": "connections forgotten because a limit was reached",
    "streams_timed_out": "connections forgotten for want of segments",
    "gaps": "holes in streams that were given up",
    "broken_messages": "messages in streams of which a part never came",
    "crowded": "times something in a stream was given up for want of room",
    "resyncs": "times the beginning of a message was found again behind a hole",
    "octets": "payload of segments, in octets",
    "octets_framed": "octets that made up whole messages",
    "octets_old": "octets sent again",
    "octets_skipped": "octets of no message that became whole",
    "octets_buffered": "octets that wait now for what comes before them",
    "one_way_queries": "queries that no reply belongs to",
    "one_way_replies": "replies that no query belongs to",
    "further": "replies of further hosts to a multicast query",
    "continuations": "replies that continue a zone transfer",
    "transfers": "zone transfers begun",
    "transferring": "zone transfers under way now",
    "incomplete": "zone transfers that ended without their closing record",
    "transfers_evicted": "zone transfers ended because a limit was reached",
    "queries": "queries read",
    "replies": "replies read",
    "opened": "transactions that began with a query",
    "repeated": "queries that repeated one that waits",
    "success": "transactions that ended with their reply",
    "no_reply": "transactions that ended without one",
    "evicted": "transactions that ended early because a limit was reached",
    "pending": "queries that wait now",
    "no_query": "replies that nothing waited for",
    "duplicates": "replies to what was just answered",
    "answered_forgotten": "answered transactions forgotten because a limit was reached",
    "negative_latency": "replies older than their query",
    "transactions": "transaction events made",
    "records": "record events made",
    "omitted": "records left out of events that were too large",
    "waits": "times a worker waited for room in its event ring",
    "lossy": "no_reply and no_query that a loss may explain",
    "quarantined": "frames skipped because they had killed a worker twice",
    "lost_pending": "waiting queries lost with a worker that died",
    "lost_transfers": "zone transfers lost with a worker that died",
    "lost_octets": "waiting octets lost with a worker that died",
    "torn_frames": "frames of which a worker that died had published a part",
    "torn_events": "the events of these parts",
    "discarded": "messages that could not be read, by reason",
    "malformed": "messages with an event, but malformed, by reason",
    "rcode": "answered transactions, by the reply's rcode",
}

SINK = {
    "events": "events merged",
    "writes": "write calls",
    "settled": "events that all outputs are through with",
}

OUTPUT = {
    "events": "events written; to fluentd: acknowledged at once",
    "bytes": "bytes written; to fluentd: of chunks, as they were sent",
    "dropped": "events not written, the output having failed or not keeping up",
    "stats": "events about the sensor itself, written or not",
    "done": "merged events that the output is through with",
    "spooled": "events that went into the spool; of a fluentd output, as all that follows",
    "delivered": "events from the spool that a server has acknowledged",
    "spool_dropped": "events of the spool that were given up: no room, too old, or taken by nobody",
    "spool_damaged": "events of the spool that could not be read any more",
    "spool_found": "events that stood in the spool before, or that nobody knew to be there",
    "spool_events": "events that stand in the spool now",
    "spool_bytes": "what the spool takes on disk now",
    "spool_limit": "what the spool may take on disk",
    "resent": "chunks that were sent once more",
    "rejected": "events that no server would take, of those that were dropped",
    "unacknowledged": "chunks that are sent and not acknowledged now",
    "servers": "servers that are not on standby",
    "servers_up": "... of these, connected now",
    "blocked_since": "since when it takes nothing though it has work, monotonic ns; 0: it moves",
    "spool_failing": "1 while its spool can't be written, read or forced to the disk",
}

SUPERVISOR = {
    "restarts": "processes started again, by role",
    "hangs": "processes killed because they showed no sign of life",
    "interface_gone": "times a capture process lost its interface",
    "reloads": "times outputs were asked to be opened again",
}


def text(meanings: Mapping[str, str], name: str) -> str:
    """What a counter means; one that nobody has described yet is shown by its name."""
    known = meanings.get(name) or meanings.get(name.partition(".")[0])
    return known or name.replace("_", " ")
