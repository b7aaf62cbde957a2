"""A storm of retries: every event is sent 1 to 5 times, to whichever gateway, at once or much later.

What is sent, how often, where and in which form is drawn from the seed beforehand; failures and missing answers add
retries. Callers give ids in every way there is, and two owners may give the same one; some events have no id, and are
sent once. Every event carries a marker of its own in a field that the contract does not name, so that its row can be
found even if nobody was told the event's id.

Limits: TRIES_MAX requests for each event, CONNECTIONS of them at once, ANSWER_S_MAX for each answer, `seconds_max` in
all. Nothing is sent beyond the part of the storm that was released.
"""

import asyncio
import contextlib
import heapq
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from deploy.local.process import HOST
from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS, Stream
from tests.chaos.load import read_answer

MARKER = "storm_marker"
TRIES_MAX = 5
CONNECTIONS = 32
ANSWER_S_MAX = 10.0
IMPATIENT_S = 0.5  # less than the gateway waits for Kafka
RECONNECT_S = 0.05
GATE_S = 0.02
HELD = -1.0
BATCH_EVENTS_MAX = 12
SAME_ID_SHARE = 0.15  # of ids that are those of other owners' events, too
TWICE_SHARE = 0.1  # of batches that have one of their events twice
CREDENTIALS = ("authorization: Bearer tok_demo_local_only", "x-public-api-key: pk_demo_local_only")

Place = tuple[int, int]  # a gateway, and which of its lives


@dataclass(frozen=True)
class Owner:
    stream: Stream = field(repr=False)
    name: str

    @property
    def path(self) -> str:
        kind = "apps" if self.stream is APP_INTERACTIONS else "retrievers"
        return f"/v1/public/{kind}/{self.name}/interactions"

    @property
    def headers(self) -> tuple[str, ...]:
        return () if self.stream is APP_INTERACTIONS else CREDENTIALS


OWNERS = [Owner(stream, name) for stream in (APP_INTERACTIONS, RETRIEVER_INTERACTIONS) for name in ("demo", "shop")]


@dataclass(eq=False)
class Event:
    """`given_id` is the id that its caller gives it by name, `key` the one that its batch has; `accepted_as` are the
    ids that answers of 200 gave it."""

    owner: Owner
    marker: str
    given_id: str | None
    body: dict[str, Any]
    key: str | None = None
    accepted_as: set[str] = field(default_factory=set)
    sent_to: set[Place] = field(default_factory=set)

    @property
    def is_callers(self) -> bool:
        """Whether its caller may send it again."""
        return self.given_id is not None or self.key is not None

    def may_be(self, event_id: str) -> bool:
        """Whether this can be its id."""
        if self.given_id is not None:
            return event_id == self.given_id
        return event_id.startswith(f"{self.key}:") if self.key is not None else UUID(event_id).version == 7


@dataclass(eq=False)
class Parcel:
    """Events that travel in one request, each time."""

    events: list[Event]
    is_batch: bool
    tries: int = 0

    @property
    def may_be_repeated(self) -> bool:
        return self.events[0].is_callers

    def request(self, random: Random) -> tuple[bytes, list[Event]]:
        """In one of the forms it can have, and the events in the order in which they are in it."""
        events = random.sample(self.events, len(self.events))
        if self.is_batch and self.events[0].given_id is not None and random.random() < TWICE_SHARE:
            events.append(random.choice(events))
        key, bodies = self._named(events, random)
        path, content_type = events[0].owner.path + ("/batch" if self.is_batch else ""), "application/json"
        if not self.is_batch:
            body = json.dumps(bodies[0])
        elif random.random() < 0.33:
            content_type, body = "application/x-ndjson", "\n".join(map(json.dumps, bodies))
        else:
            body = json.dumps(random.choice([bodies, {"events": bodies}]))
        headers = [f"host: {HOST}", f"content-type: {content_type}", f"content-length: {len(body)}"]
        if key is not None and random.random() < 0.5:
            path += f"?event_id={key}"
        elif key is not None:
            headers.append("idempotency-key: " + random.choice([key, f'"{key}"']))
        head = "\r\n".join([f"POST {path} HTTP/1.1", *headers, *events[0].owner.headers])
        return f"{head}\r\n\r\n{body}".encode(), events

    def _named(self, events: Sequence[Event], random: Random) -> tuple[str | None, list[dict[str, Any]]]:
        """The id that the request itself names, and the events with theirs. What comes first where both have one is
        the request's for a single event, and the event's own in a batch."""
        bodies = [event.body for event in events]
        if events[0].given_id is None:
            return events[0].key, bodies
        is_in_body = self.is_batch or random.random() < 0.33
        other = f"other-{random.randrange(1_000)}" if random.random() < 0.33 else None
        in_body = [event.given_id if is_in_body else other for event in events]
        bodies = [{**body, "event_id": id_} if id_ else body for body, id_ in zip(bodies, in_body, strict=True)]
        if is_in_body:
            return other if self.is_batch else None, bodies
        return events[0].given_id, bodies


class Storm:
    """Runs in a thread of its own from `with` on, about `seconds` long if nothing holds it up.

    `lives` counts the starts of each gateway: whoever kills one raises its number before starting it again.
    """

    def __init__(
        self, name: str, ports: Sequence[int], seed: int, *, ids: int, seconds: float, seconds_max: float
    ) -> None:
        self.lives = [0] * len(ports)
        self.answers: Counter[str] = Counter()  # events by what their requests ended in
        self.sent_to: Counter[Place] = Counter()
        self.sent_again_to: Counter[Place] = Counter()  # those of them that had been sent there before
        self.answered_by: dict[Place, Counter[str]] = {}
        self.position = 0.0
        self._name = name
        self._ports = ports
        self._seed = seed
        self._numbers = count()
        self._queue: list[tuple[float, int, Parcel]] = []
        self._released = HELD
        self._under_way = 0
        self._is_stopped = False
        self._failure: BaseException | None = None
        self.parcels = self._plan(Random(seed), ids)
        self._pause_s = CONNECTIONS * seconds / len(self._queue)
        self._seconds_max = seconds_max
        self._thread = threading.Thread(target=self._run_in_thread, name="storm", daemon=True)

    @property
    def events(self) -> list[Event]:
        return [event for parcel in self.parcels for event in parcel.events]

    # The plan

    def _plan(self, random: Random, ids: int) -> list[Parcel]:
        """About so many ids, and half as many events without."""
        parcels: list[Parcel] = []
        given: dict[tuple[Owner, str], None] = {}
        left = ids
        while left > 0:
            kind = random.choices(["single", "batch", "keyed"], [8, 1, 1])[0]
            size = 1 if kind == "single" else random.randint(1, BATCH_EVENTS_MAX)
            if kind == "keyed":
                owner = random.choice(OWNERS)
                key = f"{self._name}-k{left}"
                parcel = Parcel([self._event(random, owner, key=key) for _ in range(size)], True)
            else:
                parcel = Parcel(self._events_with_ids(random, size, given), kind == "batch")
            parcels.append(parcel)
            left -= size
        while left > -ids // 2:
            size = random.choice([1, 1, 1, random.randint(1, BATCH_EVENTS_MAX)])
            owner = random.choice(OWNERS)
            parcels.append(Parcel([self._event(random, owner) for _ in range(size)], size > 1 or random.random() < 0.1))
            left -= size
        for parcel in parcels:
            self._schedule(random, parcel)
        return parcels

    def _events_with_ids(self, random: Random, size: int, given: dict[tuple[Owner, str], None]) -> list[Event]:
        """Of one owner. Some of the ids are those of other owners' events, too."""
        owner = random.choice(OWNERS)
        events: list[Event] = []
        for _ in range(size):
            id_ = random.choice(list(given))[1] if given and random.random() < SAME_ID_SHARE else ""
            if not id_ or (owner, id_) in given:
                id_ = f"{self._name}:{len(given)}"
            given[owner, id_] = None
            events.append(self._event(random, owner, id_))
        return events

    def _event(self, random: Random, owner: Owner, given_id: str | None = None, key: str | None = None) -> Event:
        marker = f"{self._name}-m{next(self._numbers)}"
        body: dict[str, Any] = {MARKER: marker, "document_id": f"d{random.randrange(100)}", "position": 3}
        if owner.stream is APP_INTERACTIONS:
            body |= {"event_type": random.choice(["view", "click"]), "query": "q" * random.randint(1, 200)}
        else:
            body |= {"interaction_type": random.sample(["view", "click", "skip"], 2)}
        return Event(owner, marker, given_id, body, key)

    def _schedule(self, random: Random, parcel: Parcel) -> None:
        """How often, and at which parts of the storm: all at once, soon after, or much later."""
        first = random.random()
        self._enqueue(first, parcel)
        for _ in range(random.randint(0, TRIES_MAX - 1) if parcel.may_be_repeated else 0):
            later = random.choice([0.0, 0.0, 0.02, 1 - first]) * random.random()
            self._enqueue(min(1.0, first + later), parcel)

    def _enqueue(self, position: float, parcel: Parcel) -> None:
        parcel.tries += 1
        heapq.heappush(self._queue, (position, next(self._numbers), parcel))

    # From the thread of the test

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_stopped = True
        self._thread.join(ANSWER_S_MAX + 5)

    def release(self, until: float) -> None:
        """Of the whole, from 0 to 1."""
        self._released = until

    def hold(self) -> None:
        """Until the next `release`."""
        self._released = HELD

    def is_idle(self) -> bool:
        """Whether, while it is held, all has been answered that was sent."""
        self.check()
        return self._under_way == 0

    def put_first(self, random: Random) -> None:
        """While it is idle: before all else, each caller sends some events without ids."""
        for _ in range(CONNECTIONS):
            owner = random.choice(OWNERS)
            parcel = Parcel([self._event(random, owner) for _ in range(BATCH_EVENTS_MAX // 3)], is_batch=True)
            self.parcels.append(parcel)
            self._enqueue(0.0, parcel)

    def has_reached(self, position: float) -> bool:
        """Raises what the storm has failed with."""
        self.check()
        return self.position >= position

    def has_ended(self) -> bool:
        self.check()
        return not self._thread.is_alive()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # In its own

    def _run_in_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as failure:  # to be raised where somebody sees it
            self._failure = failure

    async def _run(self) -> None:
        async with asyncio.timeout(self._seconds_max), asyncio.TaskGroup() as callers:
            for index in range(CONNECTIONS):
                callers.create_task(self._caller(Random(f"{self._seed}-{index}")))

    async def _caller(self, random: Random) -> None:
        connections = Connections(self._ports, self.lives)
        try:
            while not self._is_stopped and (self._queue or self._under_way):
                if not self._queue or self._queue[0][0] > self._released:
                    await asyncio.sleep(GATE_S)
                    continue
                position, number, parcel = heapq.heappop(self._queue)
                self.position = max(self.position, position)
                self._under_way += 1
                try:
                    # All that matters comes from the number, whoever happens to be the one who sends it.
                    is_done = await self._send(parcel, connections, Random(f"{self._seed}-{number}"))
                finally:
                    self._under_way -= 1
                if not is_done and parcel.may_be_repeated and parcel.tries < TRIES_MAX:
                    self._enqueue(min(1.0, self.position + 0.01 * random.random()), parcel)
                await asyncio.sleep(random.uniform(0, 2) * self._pause_s)
            if not self._is_stopped:
                self.position = 1.0
        finally:
            connections.close()

    async def _send(self, parcel: Parcel, connections: "Connections", random: Random) -> bool:
        """Whether all of it was accepted, as far as its caller knows."""
        request, events = parcel.request(random)
        patience_s = random.choices([ANSWER_S_MAX, IMPATIENT_S, 0.0], [65, 30, 5])[0]
        connection = await connections.one_of(random, lambda: self._is_stopped)
        if connection is None:
            return False
        self.sent_to[connection.place] += len(events)
        for event in events:
            self.sent_again_to[connection.place] += connection.place in event.sent_to
            event.sent_to.add(connection.place)
        counts = self.answered_by.setdefault(connection.place, Counter())
        status, answer = await connection.post(request, patience_s)
        if status is None:
            self.answers["none"] += len(events)
            return False
        assert status in (200, 503), f"{status} {answer} for {request!r}"
        outcomes = [
            self._outcome(event, result) for event, result in zip(events, _results(status, answer, events), strict=True)
        ]
        counts.update(outcomes)
        self.answers.update(outcomes)
        return "refused" not in outcomes

    def _outcome(self, event: Event, result: dict[str, Any]) -> str:
        """Where it is durable, or that it was refused."""
        assert result["status"] in ("accepted", "unavailable"), f"{result} for {event}"
        if result["status"] == "unavailable":
            return "refused"
        event.accepted_as.add(result["event_id"])
        return str(result["durability"])


def _results(status: int, answer: dict[str, Any], events: Sequence[Event]) -> list[dict[str, Any]]:
    """One for each event, as a batch has them."""
    if status == 503:
        return [{"status": "unavailable"}] * len(events)
    results: list[dict[str, Any]] = answer.get("results") or [{**answer, "status": "accepted"}]
    return results


class Connection:
    def __init__(self, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.place = place
        self._reader = reader
        self._writer = writer
        self._is_used_up = False

    @property
    def is_open(self) -> bool:
        return not (self._is_used_up or self._reader.at_eof() or self._writer.is_closing())

    async def post(self, request: bytes, patience_s: float) -> tuple[int | None, dict[str, Any]]:
        """Status and body; None where no whole answer came. With no patience at all it is not waited for."""
        self._is_used_up = True
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                self._writer.write(request)
                await self._writer.drain()
            if patience_s:
                async with asyncio.timeout(patience_s):
                    status, answer, is_open = await read_answer(self._reader)
                    self._is_used_up = not is_open
                    return status, answer
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        self.close()
        return None, {}

    def close(self) -> None:
        self._writer.close()


class Connections:
    """One to each gateway, for one caller. One that is refused sends its caller to the next gateway."""

    def __init__(self, ports: Sequence[int], lives: Sequence[int]) -> None:
        self._ports = ports
        self._lives = lives
        self._open: dict[int, Connection] = {}

    async def one_of(self, random: Random, is_stopped: Callable[[], bool]) -> Connection | None:
        """None if it is stopped before there is one."""
        order = random.sample(range(len(self._ports)), len(self._ports))
        while not is_stopped():
            for gateway in order:
                connection = self._open.pop(gateway, None)
                if connection is None or not connection.is_open:
                    if connection is not None:
                        connection.close()
                    connection = await self._connect(gateway)
                if connection is not None:
                    self._open[gateway] = connection
                    return connection
            await asyncio.sleep(RECONNECT_S)
        return None

    async def _connect(self, gateway: int) -> Connection | None:
        life = self._lives[gateway]
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S_MAX):
                reader, writer = await asyncio.open_connection(HOST, self._ports[gateway])
            if life == self._lives[gateway]:
                return Connection((gateway, life), reader, writer)
            writer.close()  # of which of the two, nobody knows
        return None

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
