"""The account of a run: where every frame, message and event went, and whether it adds up.

Of a run that goes on, the same: each process commits all its counters at once, and whoever takes
from another commits later than who gave.  So slots are read from the last process to the first, and
what was given and not yet taken can be told (`in_flight`): it is never negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gazer import counters
from gazer.config import Config
from gazer.counters import Slot
from gazer.packet import FATES
from gazer.topology import Topology

# Fates of frames that were understood and are no DNS; all others but `dns` are not decoded.
NOT_DNS = ("other_port", "other_transport", "other_protocol", "icmp_error", "filtered")

# What becomes of a piece of a datagram that never is whole (capture's counters).
PIECES = (
    "foreign", "duplicate_pieces", "overlapping", "bad_pieces", "expired_pieces", "evicted_pieces",
    "waiting_pieces", "lost_pieces",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Account:
    """The ledger of a run, read once; the workers' counters are added up."""

    capture: Mapping[str, int]
    workers: Mapping[str, int]
    sink: Mapping[str, int]
    outputs: tuple[Mapping[str, int], ...]
    live: bool = False

    @classmethod
    def read(cls, slots: Mapping[int, Slot], topology: Topology, outputs: int) -> Account:
        """Read the slots, by process number."""
        sink = slots[topology.sink].seen()
        written = tuple(sink.read_output(i) for i in range(outputs))
        merged = sink.read(counters.SINK)
        each = [slots[topology.worker(i)].read(counters.WORKER) for i in range(topology.workers)]
        captures = [slots[i].read(counters.CAPTURE) for i in range(topology.captures)]
        return cls(
            capture={name: sum(one[name] for one in captures) for name in counters.CAPTURE},
            workers={name: sum(one[name] for one in each) for name in counters.WORKER},
            sink=merged,
            outputs=written,
            live=bool(topology.interfaces),
        )

    def in_flight(self) -> dict[str, int]:
        """What is on its way while the run goes on, by where it is; all 0 when it is over.

        kernel: frames in the kernel's buffers.  capture: frames in hand.  frames: in the rings to
        the workers.  events: in the rings to the sink.  output N: waiting to be written.
        """
        c, w = self.capture, self.workers
        left = c["kernel_dropped"] + c["kernel_lost"] + c["frames"]
        return {
            "kernel": c["kernel_received"] - left if self.live else 0,
            "capture": c["frames"] - sum(self._frames().values()),
            "frames": c["delivered"] - sum(self._taken().values()),
            "events": w["transactions"] + w["records"] + w["torn_events"] - self.sink["events"],
            **{
                f"output {number}": self._for_output(output)
                - output["events"] - output["spooled"] - output["dropped"]
                for number, output in enumerate(self.outputs)
            },
        }

    def _for_output(self, output: Mapping[str, int]) -> int:
        """Events that an output was to write: the merged ones (a sink that was started again merges
        once more what the output has had), and those about the sensor."""
        return max(self.sink["events"], output["done"]) + output["stats"]

    def _frames(self) -> dict[str, int]:
        """What became of the frames that were read."""
        c = self.capture
        return {
            "delivered": c["delivered"], "not DNS": self.not_dns(),
            "not decoded": sum(self.undecoded().values()), "fragments": c["fate.fragment"],
            "dropped": c["ring_dropped"],
        }  # fmt: skip

    def _taken(self) -> dict[str, int]:
        """What became of the frames that were delivered."""
        w = self.workers
        return {
            "taken by workers": w["frames"], "skipped": w["quarantined"], "torn": w["torn_frames"],
        }  # fmt: skip

    def others(self) -> dict[str, int]:
        """Frames that were understood and carry no DNS, by reason; the reasons that occurred."""
        reasons = {name: self.capture[f"fate.{name}"] for name in NOT_DNS}
        return {name: n for name, n in reasons.items() if n}

    def not_dns(self) -> int:
        """All of them."""
        return sum(self.others().values())

    def messages(self) -> int:
        """DNS messages, from datagrams and from streams."""
        return self.workers["datagrams"] + self.workers["stream_messages"]

    def one_way(self) -> int:
        """Messages that no reply belongs to."""
        return self.workers["one_way_queries"] + self.workers["one_way_replies"]

    def pieces(self) -> dict[str, int]:
        """Pieces of datagrams (frames) that did not become part of one, by reason."""
        return {name.removesuffix("_pieces"): self.capture[name] for name in PIECES}

    def undecoded(self) -> dict[str, int]:
        """Frames that could not be decoded, by reason; the reasons that occurred."""
        reasons = {
            name: self.capture[f"fate.{name}"]
            for name in FATES[1:]
            if name not in NOT_DNS and name != "fragment"
        }
        return {name: n for name, n in reasons.items() if n}

    def anomalies(self, kind: str) -> dict[str, int]:
        """Messages "discarded" or "malformed", by reason; the reasons that occurred."""
        prefix = f"{kind}."
        return {
            name.removeprefix(prefix): n
            for name, n in self.workers.items()
            if name.startswith(prefix) and n
        }

    def imbalances(self, *, running: bool = False) -> Iterator[str]:
        """The balances of the ledger that do not hold, as text; none when all is accounted for.

        running: the run goes on, and what is in flight is part of the account.
        """
        c, w = self.capture, self.workers
        discarded = sum(self.anomalies("discarded").values())
        events = w["transactions"] + w["records"] + w["torn_events"]
        flying = {name: n if running else 0 for name, n in self.in_flight().items()}
        for name, n in flying.items():
            if n < 0:
                yield f"{name}: {-n} more were taken than given"
        if self.live:
            yield from _balance("frames received by the kernel", c["kernel_received"], {
                "read": c["frames"], "dropped by the kernel": c["kernel_dropped"],
                "lost with a process": c["kernel_lost"], "in its buffer": flying["kernel"],
            })
        yield from _balance("frames read", c["frames"], {
            **self._frames(), "in hand": flying["capture"],
        })
        yield from _balance("fragments", c["fate.fragment"], {
            "joined": c["joined"], **self.pieces(),
        })
        yield from _balance("frames delivered", c["delivered"], {
            **self._taken(), "in the rings": flying["frames"],
        })
        yield from _balance("frames of workers", w["frames"], {
            "datagrams": w["datagrams"], "segments": w["segments"],
        })
        yield from _balance("octets in segments", w["octets"], {
            "of messages": w["octets_framed"], "sent again": w["octets_old"],
            "skipped": w["octets_skipped"], "waiting": w["octets_buffered"],
            "lost": w["lost_octets"],
        })
        yield from _balance("messages", self.messages(), {
            "queries": w["queries"], "replies": w["replies"], "discarded": discarded,
        })
        yield from _balance("queries", w["queries"], {
            "opened": w["opened"], "repeated": w["repeated"], "one_way": w["one_way_queries"],
        })
        yield from _balance("opened", w["opened"], {
            "success": w["success"], "no_reply": w["no_reply"], "evicted": w["evicted"],
            "pending": w["pending"], "lost": w["lost_pending"],
        })
        yield from _balance("replies", w["replies"], {
            "success": w["success"], "duplicates": w["duplicates"], "no_query": w["no_query"],
            "further": w["further"], "one_way": w["one_way_replies"],
            "of transfers begun": w["continuations"],
        })
        under_way = w["transferring"] + w["lost_transfers"]
        yield from _balance("transactions", w["transactions"] + under_way, {
            "success": w["success"], "no_reply": w["no_reply"], "evicted": w["evicted"],
            "no_query": w["no_query"], "further_reply": w["further"], "one_way": self.one_way(),
        })
        yield from _balance("replies with latency", w["success"] - w["negative_latency"], {
            "in all": sum(n for name, n in w.items() if name.startswith("latency.le.")),
        })
        yield from _balance("response codes", w["success"], {
            "in all": sum(n for name, n in w.items() if name.startswith("rcode.")),
        })
        yield from _balance("events made", events, {
            "merged": self.sink["events"], "in the rings": flying["events"],
        })
        for number, output in enumerate(self.outputs):
            yield from _balance(f"events for output {number}", self._for_output(output), {
                "written": output["events"], "spooled": output["spooled"],
                "not written": output["dropped"], "waiting": flying[f"output {number}"],
            })
            if not running:     # what is on its way into the spool is counted when it is answered
                yield from _balance(
                    f"events for the spool of output {number}",
                    output["spool_found"] + output["spooled"], {
                        "delivered": output["delivered"], "dropped": output["spool_dropped"],
                        "damaged": output["spool_damaged"], "still there": output["spool_events"],
                    })


def _balance(name: str, total: int, parts: Mapping[str, int]) -> Iterator[str]:
    if total != sum(parts.values()):
        yield f"{name}: {total} is not " + " + ".join(f"{n} {what}" for what, n in parts.items())


def summary(
    account: Account, config: Config, *, broken: bool = False, running: bool = False
) -> Iterator[str]:
    """The lines that end a run.  `broken`: processes were killed; what they had in hand is lost.
    `running`: it goes on, and what is on its way between two processes stands in no sum."""
    c, w = account.capture, account.workers
    undecoded = account.undecoded()
    line = f"{_count(c['frames'], 'frame')} read: {c['delivered']} DNS"
    line += f", {account.not_dns()} not DNS{_reasons(account.others())}"
    line += f", {sum(undecoded.values())} not decoded{_reasons(undecoded)}"
    if c["fate.fragment"]:
        line += f", {_count(c['fate.fragment'], 'fragment')}"
    if c["ring_dropped"]:
        line += f", {c['ring_dropped']} dropped"
    yield line
    if account.live:
        yield from _kernel(c)
    if c["fate.fragment"]:
        rest = {name: n for name, n in account.pieces().items() if n}
        line = f"{_count(c['fate.fragment'], 'fragment')}: {c['joined']} joined"
        line += f" ({_count(c['datagrams'], 'datagram')} put together)"
        yield line + "".join(f", {n} {name}" for name, n in rest.items())
    if w["segments"]:
        line = f"{_count(w['segments'], 'TCP segment')}: {_count(w['stream_messages'], 'message')}"
        line += f" on {_count(w['streams_opened'], 'connection')}"
        line += f"; {w['octets_framed']} octets of messages"
        more = {"sent again": w["octets_old"], "skipped": w["octets_skipped"]}
        yield line + "".join(f", {n} {name}" for name, n in more.items() if n)
    discarded, malformed = account.anomalies("discarded"), account.anomalies("malformed")
    line = f"{_count(account.messages(), 'message')}: {_count(w['queries'], 'query', 'queries')}"
    line += f" ({w['repeated']} repeated), {_count(w['replies'], 'reply', 'replies')}"
    line += f" ({_count(w['duplicates'], 'duplicate')}"
    if w["continuations"]:
        line += f", {w['continuations']} continuing a zone transfer"
    line += ")"
    line += f", {sum(discarded.values())} unreadable{_reasons(discarded)}"
    if malformed:
        line += f"; of the readable {sum(malformed.values())} malformed{_reasons(malformed)}"
    yield line
    line = f"{_count(w['transactions'], 'transaction')}: {w['success']} success"
    line += f", {w['no_reply'] + w['evicted']} no_reply, {w['no_query']} no_query"
    if account.one_way() or w["further"]:
        line += f", {account.one_way()} one_way, {w['further']} further_reply"
    yield line + (f"; {_count(w['records'], 'record')}" if config.events.records else "")
    for output, counts in zip(config.outputs, account.outputs, strict=True):
        if output.forward is not None:
            yield from _forwarded(output.name, counts)
            continue
        line = f"{_count(counts['events'], 'event')} written to {output.name}"
        line += f", {counts['dropped']} NOT written" if counts["dropped"] else ""
        yield line + _about_us(counts)
    yield from _remarks(account)
    if broken:
        yield "what was being worked on when the run broke off is not in this account"
        return
    if running:
        return
    for text in account.imbalances():
        yield f"the account does not add up: {text}"


def _forwarded(name: str, counts: Mapping[str, int]) -> Iterator[str]:
    """What became of the events for a fluentd output."""
    line = f"{_count(counts['events'], 'event')} delivered to {name}"
    line += f", {counts['spooled']} spooled" if counts["spooled"] else ""
    line += f", {counts['dropped']} NOT delivered" if counts["dropped"] else ""
    yield line + _about_us(counts)
    if counts["spool_found"] + counts["spooled"]:
        found, lost = counts["spool_found"], counts["spool_dropped"] + counts["spool_damaged"]
        line = f"its spool: {counts['delivered']} delivered"
        line += f" ({found} of an earlier run were there)" if found else ""
        line += f", {lost} LOST" if lost else ""
        left = counts["spool_events"]
        yield line + (f", {_count(left, 'event')} wait there for the next start" if left else "")


def _about_us(counts: Mapping[str, int]) -> str:
    """Of the events in an output's line, those that come from no transaction."""
    return f"; of these {counts['stats']} about the sensor" if counts["stats"] else ""


def _kernel(c: Mapping[str, int]) -> Iterator[str]:
    """What became of the frames of a live run before they were read."""
    line = f"{_count(c['kernel_received'], 'frame')} received by the kernel"
    line += f": {c['frames']} read, {c['kernel_dropped']} dropped for want of room in its buffer"
    if c["kernel_lost"]:
        line += f", {c['kernel_lost']} lost with the process that was to read them"
    if c["interface_dropped"]:
        line += f"; {c['interface_dropped']} more dropped by the interface"
    yield line


def _remarks(account: Account) -> Iterator[str]:
    """What an operator should know about this run besides the figures."""
    c, w = account.capture, account.workers
    if c["clock_jumps"]:
        yield f"the capture's time jumped {_times(c['clock_jumps'])}"
    if c["bad_time"]:
        have = "has" if c["bad_time"] == 1 else "have"
        yield f"{_count(c['bad_time'], 'frame')} {have} an impossible timestamp"
    if c["snapped"]:
        n = c["snapped"]
        yield f"{_count(n, 'frame')} {_were(n)} cut by the capture's snaplen"
    if w["negative_latency"]:
        are = "is older than its" if w["negative_latency"] == 1 else "are older than their"
        yield (
            f"{_count(w['negative_latency'], 'reply', 'replies')} {are} query: no latency there"
        )
    if w["incomplete"]:
        n = w["incomplete"]
        yield f"{_count(n, 'zone transfer')} {_were(n)} not seen to the end: `complete` is false"
    broken = _count(w["broken_messages"], "message")
    if w["gaps"]:  # a hole may hide more messages than those whose length was seen
        yield f"{_count(w['gaps'], 'hole')} in TCP streams; {broken} known to be lost or broken off"
    elif w["broken_messages"]:
        yield f"{broken} in TCP streams {_were(w['broken_messages'])} broken off"
    if w["streams_evicted"]:
        n = w["streams_evicted"]
        yield (
            f"limit reached: {_count(n, 'TCP connection')} {_were(n)} forgotten early"
            " (streams.max_streams, max_bytes)"
        )
    if w["crowded"]:
        yield (
            f"limit reached: no room in TCP streams {_times(w['crowded'])}: what was missing there"
            " was given up (streams.max_bytes_each, max_bytes, or 64 holes in one direction)"
        )
    if w["transfers_evicted"]:
        n = w["transfers_evicted"]
        yield (
            f"limit reached: {_count(n, 'zone transfer')} {_were(n)} ended early"
            " (streams.max_transfers, max_bytes, or 4 under one id)"
        )
    if c["evicted_pieces"]:
        n = c["evicted_pieces"]
        yield (
            f"limit reached: {_count(n, 'fragment')} {_were(n)} thrown away unjoined"
            " (fragments.max_datagrams, max_bytes)"
        )
    if w["evicted"]:
        yield (
            f"limit reached: {_count(w['evicted'], 'query', 'queries')} left early as no_reply"
            " (transactions.max_pending, max_pending_bytes, or 64 under one key)"
        )
    if w["answered_forgotten"]:
        yield (
            f"limit reached: {_count(w['answered_forgotten'], 'answered transaction')}"
            f" {_were(w['answered_forgotten'])} forgotten early"
            " (transactions.max_pending); their duplicates count as no_query"
        )
    if w["lossy"]:
        n = w["lossy"]
        have = "has" if n == 1 else "have"
        yield (
            f"{_count(n, 'no_reply or no_query', 'no_reply and no_query')} {have} no weight: frames"
            " were being lost"
        )
    if w["quarantined"]:
        n = w["quarantined"]
        yield f"{_count(n, 'frame')} {_were(n)} skipped, having killed a worker twice"
    lost = {
        "waiting query": w["lost_pending"], "zone transfer": w["lost_transfers"],
        "octet of streams": w["lost_octets"],
    }
    if any(lost.values()):
        yield "lost with workers that died: " + ", ".join(
            _count(n, what, _MANY[what]) for what, n in lost.items() if n)
    if w["torn_frames"] or w["torn_events"]:
        n = w["torn_frames"]
        yield (
            f"a worker died in the middle of {_count(n, 'frame')}, of which there"
            f" {'is' if w['torn_events'] == 1 else 'are'} {_count(w['torn_events'], 'event')}"
        )
    if w["omitted"]:
        left = _count(w["omitted"], "record")
        yield f"limit reached: {left} left out of events (events.max_size)"


_MANY = {
    "waiting query": "waiting queries", "zone transfer": "zone transfers",
    "octet of streams": "octets of streams",
}


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _reasons(reasons: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name} {n}' for name, n in reasons.items())})" if reasons else ""
