"""Transactions and records → the fields of their events, in both details.

- An entry of `query` or `reply` is there for each record that could be read; a message without
  records has the empty list, since the message was there. `rcode` (full detail) is the reply's.
- A transfer's `reply` is all of its first message and the answers of the others; its flags are
  those of its first message, its rcode and its times those of its last.
- The tags and tunnels are those around the query, without a query around the reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import message as dns
from .parts import Level

if TYPE_CHECKING:
    from .events import Pending, Seen
    from .rules import Rules
    from .transfers import Transfer

NS = 1_000_000_000


@dataclass(frozen=True)
class Timestamp:
    """A point in time, printed as seconds with six decimals, truncated."""

    ns: int

    def __str__(self) -> str:
        return f"{self.ns // NS}.{self.ns % NS // 1000:06d}"

    def __float__(self) -> float:
        return float(str(self))


@dataclass(frozen=True)
class Latency:
    """A span, printed as seconds with nine decimals."""

    ns: int

    def __str__(self) -> str:
        return f"{self.ns // NS}.{self.ns % NS:09d}"

    def __float__(self) -> float:
        return self.ns / NS


def transaction(rules: Rules, status: str, pending: Pending | None, query: Seen | None,
                reply: Seen | None, transfer: Transfer | None = None) -> dict[str, Any]:
    """`reply` is a transfer's last message. What never waited has no `pending`."""
    seen = query or (transfer.messages[0] if transfer else None) or reply
    assert seen is not None
    client, client_port, server, server_port = (reply or seen).ends
    out: dict[str, Any] = {
        "client_addr": client, "client_port": client_port, "server_addr": server,
        "server_port": server_port, "status": status, "tx_id": seen.message.id,
    }
    sides = (("query", query), ("reply", reply))
    for what, side in sides:
        if side is None:
            continue
        shown = list(side.message.records)
        if transfer and side is reply:
            first, *others = transfer.messages
            shown = [*first.message.records, *(r for m in others for r in m.message.answers)]
        out[what] = [entry(rules, record) for record in shown]
        out[f"{what}_ts"] = Timestamp(side.ts_ns)
    if rules.detail == "classic":
        return out
    for what, side in sides:
        if side is not None:
            out[f"{what}_ts_ns"] = side.ts_ns
            out[f"{what}_size"] = side.length
    dso = {what: side.message.dso for what, side in sides if side and side.message.dso}
    if dso:
        out["dso"] = dso
    flags = transfer.messages[0] if transfer else reply or seen
    out |= {"proto": seen.packet.transport, "sensor": rules.sensor, "opcode": seen.message.opcode,
            "flags": flags.message.flag_text}
    if pending is not None:
        out["retransmits"] = pending.retransmits
    if reply is not None:
        out["rcode"] = reply.message.rcode
    if query is not None and reply is not None:
        latency = reply.ts_ns - query.ts_ns
        if latency >= 0:
            out["latency"] = Latency(latency)
    if transfer is not None:
        size = sum(one.length for one in transfer.messages)
        out |= {"complete": transfer.complete, "messages": len(transfer.messages),
                "records": len(transfer.answers), "bytes": size, "reply_size": size}
    if seen.packet.vlans:
        out["vlan"] = seen.packet.vlans
    if seen.packet.levels:
        out["tunnels"] = [tunnel(level) for level in seen.packet.levels]
    return out


def entry(rules: Rules, record: dns.Record) -> dict[str, Any]:
    out: dict[str, Any] = {"name": record.name, "section": record.section, "type": record.type}
    if record.data is not None:
        out["data"] = record.data
    if rules.detail == "full":
        if record.rdtype != dns.OPT:
            out["class"] = record.class_text
            if record.ttl is not None:
                out["ttl"] = record.ttl
        if record.top:
            out["unicast" if record.place == 0 else "flush"] = True
    return out


def record(rules: Rules, seen: Seen, of: dns.Record) -> dict[str, Any]:
    """A record event."""
    client, client_port, server, server_port = seen.ends
    out = entry(rules, of) | {
        "client_addr": client, "client_port": client_port, "server_addr": server,
        "server_port": server_port, "tx_id": seen.message.id,
        "msg_type": "reply" if seen.message.is_reply else "query",
    }
    if rules.detail == "classic":
        return out
    out |= {
        "flags": seen.message.flag_text, "opcode": seen.message.opcode,
        "proto": seen.packet.transport, "sensor": rules.sensor, "ts": Timestamp(seen.ts_ns),
        "ts_ns": seen.ts_ns,
    }
    if seen.message.is_reply:
        out["rcode"] = seen.message.rcode
    if seen.packet.vlans:
        out["vlan_path"] = ".".join(map(str, seen.packet.vlans))
    if seen.packet.levels:
        out["tunnel_path"] = ", ".join(map(tunnel_text, seen.packet.levels))
    return out


def tunnel(level: Level) -> dict[str, Any]:
    out: dict[str, Any] = {"type": level.kind}
    if level.id is not None:
        out["id"] = level.id
    if level.ends is not None:
        out["source"], out["destination"] = level.ends
    return out


def tunnel_text(level: Level) -> str:
    parts = [level.kind]
    if level.id is not None:
        parts.append(str(level.id))
    if level.ends is not None:
        parts.append(">".join(level.ends))
    return " ".join(parts)
