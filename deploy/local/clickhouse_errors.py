"""ClickHouse's errors as its HTTP interface gives them: a code, the engine's own text, an HTTP status.

Limit: the status follows the server's own table; a code that the table lacks is a 500, as there.
"""

import re

SYNTAX_ERROR = 62
BAD_ARGUMENTS = 36
NOT_IMPLEMENTED = 48
UNKNOWN_FORMAT = 73
TOO_MANY_SIMULTANEOUS_QUERIES = 202
SOCKET_TIMEOUT = 209
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216
QUERY_IS_TOO_LARGE = 229
ABORTED = 236
NOT_ENOUGH_SPACE = 243
CANNOT_DECOMPRESS = 271
UNKNOWN_EXCEPTION = 1002

NAMES = {
    SYNTAX_ERROR: "SYNTAX_ERROR",
    BAD_ARGUMENTS: "BAD_ARGUMENTS",
    NOT_IMPLEMENTED: "NOT_IMPLEMENTED",
    UNKNOWN_FORMAT: "UNKNOWN_FORMAT",
    TOO_MANY_SIMULTANEOUS_QUERIES: "TOO_MANY_SIMULTANEOUS_QUERIES",
    SOCKET_TIMEOUT: "SOCKET_TIMEOUT",
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING: "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
    QUERY_IS_TOO_LARGE: "QUERY_IS_TOO_LARGE",
    ABORTED: "ABORTED",
    NOT_ENOUGH_SPACE: "NOT_ENOUGH_SPACE",
    CANNOT_DECOMPRESS: "CANNOT_DECOMPRESS",
    UNKNOWN_EXCEPTION: "UNKNOWN_EXCEPTION",
}

# What a server answers when a query fails before its first byte of result. Text that cannot be parsed and
# values that do not fit are 400, names that do not exist 404.
CODES_BY_STATUS = {
    400: (6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
    408: (159,),
    411: (381,),
    413: (229,),
    415: (779,),
    501: (48,),
    503: (76, 209, 439),
}
STATUS_BY_CODE = {code: status for status, codes in CODES_BY_STATUS.items() for code in codes}

CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
# The embedding reports some errors twice or thrice over, one within the other.
NESTED = re.compile(rf"{CODE.pattern}(?P<inner>{CODE.pattern}.*)\. \(\w+\)(?: \(version [^)]*\))?", re.DOTALL)
# Where we hand an INSERT's data over is nothing to the caller.
HANDED_OVER = re.compile(
    r": \(in file/uri /dev/fd/\d+\)|(?:: While executing File)?: data for INSERT was parsed from file"
)


class ClickHouseError(Exception):
    """A refusal with its own answer."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.status = STATUS_BY_CODE.get(code, 500)
        self._text = text

    def body(self, version: str) -> bytes:
        """As a server sends it."""
        text = self._text if "(version " in self._text else f"{self._text} (version {version})"
        return text.encode(errors="surrogateescape")


def refusal(code: int, message: str) -> ClickHouseError:
    """An error of our own, in the engine's words."""
    return ClickHouseError(code, f"Code: {code}. DB::Exception: {message}. ({NAMES[code]})")


def engine_error(text: str) -> ClickHouseError:
    """What the engine raised, without what the embedding added around it."""
    found = CODE.search(text)
    if found is None:
        return refusal(UNKNOWN_EXCEPTION, text or "The engine gave no reason")
    text = text[found.start() :].strip()
    while nested := NESTED.fullmatch(text):
        text = nested["inner"]
    return ClickHouseError(int(found[1]), HANDED_OVER.sub("", text))
