"""Body of `POST /v1/public/apps/{slug}/interactions`, field for field as the contract has it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.fields import STRICT, Int64, JsonObject


class InteractionRequest(BaseModel):
    """Request body for tracking a user interaction with a public App.

    Extra top-level fields are stored as-is alongside the standard fields,
    allowing callers to attach arbitrary metadata without schema changes.
    """

    model_config = ConfigDict(**STRICT, extra="allow")

    event_type: Annotated[str, Field(description="Interaction event type (e.g. 'click', 'search')")]
    document_id: Annotated[str | None, Field(description="ID of the document interacted with")] = None
    position: Annotated[Int64 | None, Field(description="Zero-based position of the result")] = None
    query: Annotated[str | None, Field(description="Search query that produced the result")] = None
    result_count: Annotated[Int64 | None, Field(description="Number of results returned")] = None
    latency_ms: Annotated[Int64 | None, Field(description="Time from request to first result (ms)")] = None
    dwell_ms: Annotated[Int64 | None, Field(description="Time the user spent on the result (ms)")] = None
    session_id: Annotated[str | None, Field(description="Client-side session identifier")] = None
    metadata: Annotated[JsonObject | None, Field(description="Arbitrary extra metadata")] = None
