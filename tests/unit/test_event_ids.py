"""gateway.event_ids: the ids that the gateway makes."""

import uuid
from itertools import islice

from gateway import event_ids

COUNT = 1_000  # several times as many as have their first digits in common


def test_ids_of_many_events_are_uuids_and_in_order() -> None:
    ids = list(islice(event_ids.many(), COUNT))
    assert ids == sorted(set(ids))
    for id_ in ids:
        text = id_.decode()
        assert str(uuid.UUID(text)) == text
        assert (uuid.UUID(text).version, uuid.UUID(text).variant) == (7, uuid.RFC_4122)
        assert event_ids.is_id(text)


def test_requests_do_not_share_ids() -> None:
    requests = [set(islice(event_ids.many(), COUNT)) for _ in range(100)]
    assert len(set().union(*requests)) == 100 * COUNT
    assert len({event_ids.new() for _ in range(COUNT)}) == COUNT
