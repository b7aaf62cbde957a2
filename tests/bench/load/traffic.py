"""What is sent: requests that differ in their bodies alone, and how many events each of them has."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Self

from deploy.local.process import HOST

USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
ID_HEADER = "Idempotency-Key"

LUA = """\
local bodies = {{
{bodies}
}}
local path, headers, ids = "{path}", {{ {headers} }}, "{ids}"
local made, requests = 0, {{}}
function init()
  for i, body in ipairs(bodies) do requests[i] = wrk.format("POST", path, headers, body) end
end
function request()
  made = made + 1
  local at = made % #bodies + 1
  if ids == "" then return requests[at] end
  headers["{id_header}"] = ids .. made
  return wrk.format("POST", path, headers, bodies[at])
end
function done(summary)
  local e = summary.errors
  io.write(string.format('\\n{{"answers": %d, "seconds": %f, "refused": %d, "broken": %d}}\\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Traffic:
    """`ids`, if any, is what the ids begin with that the caller gives its events."""

    path: str
    bodies: Sequence[bytes]
    events: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    ids: str = ""

    @property
    def all_headers(self) -> dict[str, str]:
        return {"Host": HOST, "User-Agent": USER_AGENT, "Content-Type": "application/json", **self.headers}

    def requests(self) -> Iterator[bytes]:
        """Without end, as bytes."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.all_headers.items())
        whole = [self._request(head, body) for body in self.bodies]
        if not self.ids:
            return cycle(whole)
        return (
            self._request(f"{head}{ID_HEADER}: {self.ids}{number}\r\n", body)
            for number, body in zip(count(), cycle(self.bodies), strict=False)
        )

    def _request(self, head: str, body: bytes) -> bytes:
        return f"POST {self.path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def lua(self) -> str:
        """A script for wrk that sends the same, and ends with a line of JSON."""
        return LUA.format(
            bodies=",\n".join(f"[==[{body.decode()}]==]" for body in self.bodies),
            path=self.path,
            headers=", ".join(f'["{name}"] = "{value}"' for name, value in self.all_headers.items()),
            ids=self.ids,
            id_header=ID_HEADER,
        )

    def save(self, path: Path) -> None:
        """For a generator in a process of its own."""
        bodies = [body.decode() for body in self.bodies]
        document = {"path": self.path, "bodies": bodies, "events": self.events}
        path.write_text(json.dumps({**document, "headers": dict(self.headers), "ids": self.ids}))

    @classmethod
    def load(cls, path: Path) -> Self:
        document = json.loads(path.read_text())
        return cls(**{**document, "bodies": [body.encode() for body in document["bodies"]]})
