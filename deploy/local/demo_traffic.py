"""The demo's traffic: events posted to the gateway over a few dozen connections that are kept alive.

An event is tried `1 + len(RETRY_DELAYS_S)` times, and all sending ends once `REFUSED_MAX` events were given up.
Limit: a try that got no answer may have left its event behind, and the next try makes another one, under
another id. Such tries are counted in `unanswered`.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http import HTTPStatus

import httpx
import orjson

from deploy.local.shop import Event
from schemas.streams import APP_INTERACTIONS, STREAMS

APP_PATH = "/v1/public/apps/demo/interactions"
RETRIEVER_PATH = "/v1/public/retrievers/demo/interactions"
APP_HEADERS = {"Content-Type": "application/json"}
# The keys of deploy/local/registry.toml: for this machine only, and no secret.
RETRIEVER_HEADERS = {
    **APP_HEADERS,
    "Authorization": "Bearer tok_demo_local_only",
    "X-Public-API-Key": "pk_demo_local_only",
}

CONNECTIONS = 32
ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1)
ANSWER_S_MAX = 10.0
RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0, 4.0)  # a gateway or a broker restarts in that time
REFUSED_MAX = 50
# The connection was never made: nothing of the event can be anywhere.
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class NotTaken(Exception):
    """A try that was not answered with 200. `is_final`: another one would end the same way."""

    def __init__(self, reason: str, *, is_final: bool = False, may_arrive: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final
        self.may_arrive = may_arrive


class Traffic:
    """What became of the events, while `send` is under way and after it."""

    def __init__(self, gateway_url: str) -> None:
        self._url = gateway_url
        self.sent = Counter[str]()
        self.acknowledged: dict[str, list[str]] = {stream.name: [] for stream in STREAMS}
        """The event ids of the answers with 200, by stream."""
        self.refused = Counter[str]()
        """Events that were given up, by the reason of their last try."""
        self.retries = 0
        self.unanswered = 0
        self.took_s = 0.0

    @property
    def acknowledged_count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def send(self, events: Iterable[Event]) -> None:
        """Until each event is acknowledged or refused."""
        began_s = time.monotonic()
        queue = iter(events)
        async with asyncio.TaskGroup() as senders:
            for _ in range(CONNECTIONS):
                senders.create_task(self._send_in_turn(queue))
        self.took_s = time.monotonic() - began_s

    async def _send_in_turn(self, queue: Iterator[Event]) -> None:
        # A client of its own: httpx's pool looks through all its connections several times a request, which
        # at 32 of them costs three times as much as the request. trust_env: no proxy between us and 127.0.0.1;
        # verify: no need to load certificates for it.
        async with httpx.AsyncClient(
            base_url=self._url, limits=ONE, timeout=ANSWER_S_MAX, trust_env=False, verify=False
        ) as client:
            for event in queue:
                self.sent[event.stream.name] += 1
                await self._deliver(client, event)
                if self.refused.total() >= REFUSED_MAX:
                    return

    async def _deliver(self, client: httpx.AsyncClient, event: Event) -> None:
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                event_id = await _post(client, event)
            except NotTaken as refusal:
                self.unanswered += refusal.may_arrive
                if delay_s is None or refusal.is_final:
                    self.refused[str(refusal)] += 1
                    return
                self.retries += 1
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
            else:
                self.acknowledged[event.stream.name].append(event_id)
                return


async def _post(client: httpx.AsyncClient, event: Event) -> str:
    """One try: the event's id. Raises NotTaken."""
    is_app = event.stream is APP_INTERACTIONS
    path, headers = (APP_PATH, APP_HEADERS) if is_app else (RETRIEVER_PATH, RETRIEVER_HEADERS)
    try:
        answer = await client.post(path, content=event.body, headers=headers)
    except httpx.TransportError as error:
        # Some errors have no text.
        reason = str(error) or type(error).__name__
        raise NotTaken(reason, may_arrive=not isinstance(error, UNSENT)) from error
    if answer.status_code == HTTPStatus.OK:
        return str(orjson.loads(answer.content)["event_id"])
    # With a 503 the gateway may be in doubt itself, if Kafka did not answer it in time.
    is_final = answer.is_client_error and answer.status_code != HTTPStatus.TOO_MANY_REQUESTS
    raise NotTaken(f"HTTP {answer.status_code}: {answer.text[:200]}", is_final=is_final, may_arrive=not is_final)
