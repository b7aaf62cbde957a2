"""The bodies of answers to events that were taken, as documented at /openapi.json. `gateway.answers` writes them.

They are open: a member that is added one day breaks no caller that reads those of today.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from schemas.errors import ErrorDetail, ValidationError

EventId = Annotated[
    str,
    Field(
        description="The caller's own id of the event, else one that the gateway made (UUIDv7)",
        examples=["01a20220-ff79-710f-a8c3-ad047456ac5e"],
    ),
]
Durability = Annotated[
    Literal["kafka", "spool"],
    Field(description="Where the event is safe: in Kafka on all in-sync replicas, or fsynced on the gateway's disk"),
]
NoDurability = Annotated[Literal["none"], Field(description="Nothing was stored")]
IsDryRun = Annotated[Literal[True], Field(description="Nothing was stored")]
Row = Annotated[dict[str, Any], Field(description="The row that would be stored")]
Index = Annotated[int, Field(ge=0, description="Place of the event in the batch, from 0")]


class EventWarning(BaseModel):
    """Something odd about an event or a batch that was taken nevertheless."""

    code: Annotated[str, Field(description="Stable identifier (machine-readable)", examples=["event_id_invalid"])]
    loc: Annotated[list[str | int], Field(description="Path of the field", examples=[["event_id"]])]
    message: Annotated[str, Field(description="The same in words")]


Warnings = Annotated[list[EventWarning], Field(default_factory=list, description="Present only if there are any")]


class InteractionAccepted(BaseModel):
    """The event is durable."""

    success: Literal[True]
    event_id: EventId
    durability: Durability
    warnings: Warnings


class InteractionRehearsed(BaseModel):
    """The event would be accepted."""

    success: Literal[True]
    dry_run: IsDryRun
    event_id: EventId
    durability: NoDurability
    row: Row
    warnings: Warnings


class AcceptedResult(BaseModel):
    """The event is durable."""

    index: Index
    status: Literal["accepted"]
    event_id: EventId
    durability: Durability
    warnings: Warnings


class RehearsedResult(BaseModel):
    """The event would be accepted."""

    index: Index
    status: Literal["accepted"]
    event_id: EventId
    durability: NoDurability
    row: Row
    warnings: Warnings


class RejectedResult(BaseModel):
    """The event is at fault: to send it again is of no use."""

    index: Index
    status: Literal["rejected"]
    detail: Annotated[list[ValidationError], Field(description="`loc` starts with `body` and the index")]


class UnavailableResult(BaseModel):
    """Nothing is wrong with the event, but it was not stored: send it again, with this id as its `event_id`."""

    index: Index
    status: Literal["unavailable"]
    event_id: str
    error: ErrorDetail


class BatchAnswer(BaseModel):
    """One result for each event, in order."""

    success: Annotated[bool, Field(description="Whether at least one event was accepted")]
    results: list[Annotated[AcceptedResult | RejectedResult | UnavailableResult, Field(discriminator="status")]]
    warnings: Warnings


class BatchRehearsed(BaseModel):
    """What would become of each event, in order."""

    success: Annotated[bool, Field(description="Whether at least one event would be accepted")]
    dry_run: IsDryRun
    results: list[Annotated[RehearsedResult | RejectedResult, Field(discriminator="status")]]
    warnings: Warnings
