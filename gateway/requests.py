"""One HTTP request as the endpoints see it, read once: its headers, its query, and what its answer must carry."""

from urllib.parse import parse_qsl

from gateway.asgi import Header, Scope
from gateway.errors import InvalidEvent

QUERY_FIELDS_MAX = 100

Query = dict[str, list[str]]


class Request:
    """`headers` by lower-case name (of one that comes twice, the last); `answer_headers` go with whatever is answered,
    an error too; `received_ms` is the time of its arrival, epoch ms; `events` how many it holds, 0 until that is known.
    """

    __slots__ = ("answer_headers", "events", "headers", "query", "received_ms", "scope")

    def __init__(self, scope: Scope, received_ms: int) -> None:
        self.scope = scope
        self.events = 0
        self.received_ms = received_ms
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.answer_headers: list[Header] = []
        self.query: Query = {}

    def read_query(self) -> None:
        """Fill `query`. Raises InvalidEvent."""
        text: bytes = self.scope["query_string"]
        if not text:
            return
        try:
            fields = parse_qsl(
                text.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=QUERY_FIELDS_MAX,
            )
        except ValueError:  # too many, or no UTF-8
            raise InvalidEvent(
                [{"loc": ["query"], "msg": f"At most {QUERY_FIELDS_MAX} fields, in UTF-8", "type": "query_invalid"}]
            ) from None
        for name, value in fields:
            self.query.setdefault(name, []).append(value)

    def parameter(self, name: str) -> str | None:
        """Of a query field that comes twice, the last."""
        values = self.query.get(name)
        return values[-1] if values else None
