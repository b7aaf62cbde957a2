"""Body of `POST /v1/public/retrievers/{public_name}/interactions`, field for field as the contract has it.

The contract shows `query_snapshot` and `metadata` as plain objects; null is taken as well, as it is for the
same fields of the app contract: a client that writes absent fields as null must not lose its events. For the
same reason fields that the contract does not name are kept in `extra`, as the app contract has it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from schemas.fields import INT64_MAX, STRICT, JsonObject

InteractionType = Literal[
    "view",
    "click",
    "positive_feedback",
    "negative_feedback",
    "purchase",
    "add_to_cart",
    "wishlist",
    "long_view",
    "share",
    "bookmark",
    "query_refinement",
    "zero_results",
    "filter_toggle",
    "skip",
    "return_to_results",
]


# The bounds the contract states are in its schema; the upper one is ours (see `fields`).
Position = Annotated[int, Field(ge=0, le=INT64_MAX), WithJsonSchema({"type": "integer", "minimum": 0})]
ResultSetSize = Annotated[int, Field(ge=1, le=INT64_MAX), WithJsonSchema({"type": "integer", "minimum": 1})]


class TrackInteractionRequest(BaseModel):
    """Request to track a single interaction from public retriever."""

    model_config = ConfigDict(**STRICT, extra="ignore")

    document_id: Annotated[str, Field(description="ID of the document that was interacted with")]
    # fail_fast: a list of 60,000 wrong values gets one error, not 60,000.
    interaction_type: Annotated[
        list[InteractionType],
        Field(min_length=1, fail_fast=True, description="Type(s) of interaction that occurred"),
    ]
    position: Annotated[Position, Field(description="Position in search results (0-indexed)")]
    execution_id: Annotated[
        str | None,
        Field(
            description="ID of the retriever execution that generated these results",
            examples=["exec_abc123xyz"],
        ),
    ] = None
    query_snapshot: Annotated[
        JsonObject | None,
        Field(
            description="Snapshot of the query that generated these results",
            examples=[{"text": "wireless headphones"}],
        ),
    ] = None
    document_score: Annotated[
        float | None, Field(description="Initial retrieval score of this document", examples=[0.95])
    ] = None
    result_set_size: Annotated[
        ResultSetSize | None, Field(description="Total number of results shown", examples=[10])
    ] = None
    session_id: Annotated[
        str | None,
        Field(description="Session identifier for tracking user journey", examples=["sess_abc123"]),
    ] = None
    metadata: Annotated[JsonObject | None, Field(description="Additional context about the interaction")] = None
