"""GET …/interactions.gif: an event as query parameters, for pages and mails that can do no more than show an image.

Same validation and durability as a body. What a parameter's text means, its field's type says: integers and numbers in
decimal, objects as JSON, `interaction_type` repeated. What the contract does not name is text, or a list if repeated.
"""

from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel

from gateway.asgi import Receive, Send
from gateway.callers import Door
from gateway.endpoints import Services
from gateway.requests import Query, Request
from gateway.single_event import SingleEvent
from schemas.streams import Stream
from schemas.validation import Invalid, loads

GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00"
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x01D\x00;"
)
"""One transparent point."""

OURS = frozenset({"event_id", "public_api_key"})  # parameters about the request, not of the event
TIMES = frozenset({"timestamp", "sent_at"})  # text, or a number of milliseconds


class Pixel(SingleEvent):
    method: ClassVar[bytes] = b"GET"
    place: ClassVar[str] = "query"

    def __init__(self, stream: Stream, door: Door, services: Services) -> None:
        super().__init__(stream, door, services)
        self._kinds = _kinds(stream.model)

    async def _event(self, request: Request, receive: Receive) -> dict[str, Any]:
        return self.stream.check(_fields(request.query, self._kinds))

    async def respond(self, request: Request, status: int, answer: bytes, send: Send) -> None:
        headers = [
            (b"content-type", b"image/gif"),
            (b"content-length", b"%d" % len(GIF)),
            (b"cache-control", b"no-store"),
            *request.answer_headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": GIF})


def _fields(query: Query, kinds: dict[str, type]) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for name, values in query.items():
        if name in OURS:
            continue
        kind, text = kinds.get(name), values[0]
        if kind is list or len(values) > 1:  # which no other field takes
            event[name] = values
        elif kind is None and name in TIMES:
            event[name] = text.replace(" ", "+") if "T" in text else _value(text)  # an offset's + arrives as a space
        elif kind is None or kind is str:
            event[name] = text
        else:
            event[name] = _value(text) if text else None
    return event


def _value(text: str) -> Any:
    """What the text says as JSON; itself if it is none, for the field's own check to refuse."""
    try:
        return loads(text.encode())
    except Invalid:
        return text


def _kinds(model: type[BaseModel]) -> dict[str, type]:
    return {name: _kind(field.annotation) for name, field in model.model_fields.items()}


def _kind(annotation: Any) -> type:
    """The one type among str, int, float, dict, list that a field of the contract has, null aside."""
    origin = get_origin(annotation)
    for kind in (str, int, float, dict, list):
        if kind in (annotation, origin):
            return kind
    return next(_kind(argument) for argument in get_args(annotation) if argument is not type(None))
