"""uvicorn's HTTP protocol, mended in two places.

What is not HTTP is answered (400) in the error envelope. And an offer to upgrade is not seen: httptools takes
the body of a request that makes one for another protocol's bytes, so that events of Java's HTTP client, which
offers h2c with every request, would arrive empty (github.com/Kludex/uvicorn/issues/2722).
"""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import BadRequest

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)  # in no JSON: a string has no bare line break
_IGNORED = b"\r\nignored:"  # as long, so that a body's length stays true


class HttpProtocol(HttpToolsProtocol):
    def data_received(self, data: bytes) -> None:
        """A name that two segments share is missed: then the body is empty, and the answer 422."""
        if b"pgrade:" in data or b"PGRADE:" in data:
            data = _UPGRADE.sub(_IGNORED, data)
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        body = BadRequest(msg).body()
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n"
            b"connection: close\r\n"
            b"\r\n%b" % (len(body), body)
        )
        self.transport.close()
