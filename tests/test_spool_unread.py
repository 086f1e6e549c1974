"""Records that are acknowledged before they are read: they were under way when they came."""

from tests.spools import Open, account, append, events_of, genuine, read_all


def test_acknowledged_before_it_is_read(tmp_path):
    with Open(tmp_path) as spool:
        places = []
        for n in range(20):
            places.append(spool.end)
            append(spool, n)
        first = spool.next()
        for n in (3, 4, 9, 19):
            assert spool.ack_unread(places[n], events_of(n))
            assert not spool.ack_unread(places[n], events_of(n))
        assert spool.ack_unread(places[0], events_of(0)) and not spool.ack(first)
        assert account(spool)["delivered_records"] == 5
        assert genuine(spool.next()) == 1
    with Open(tmp_path) as spool:
        assert read_all(spool) == [n for n in range(1, 19) if n not in (3, 4, 9)]
        assert spool.empty and account(spool)["damaged_records"] == 0


def test_acknowledged_when_it_was_dropped(tmp_path):
    with Open(tmp_path, max_bytes=100_000) as spool:
        place = spool.end
        append(spool, 0)
        n = 0
        while not account(spool)["dropped_records"]:
            n += 1
            append(spool, n)
        assert not spool.ack_unread(place, events_of(0))
        account(spool)
