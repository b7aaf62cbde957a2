"""The error bodies of the contract, as documented at /openapi.json. `gateway.errors` writes them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.fields import STRICT


class ErrorDetail(BaseModel):
    """Error detail model."""

    model_config = STRICT

    message: Annotated[str, Field(description="Human-readable error message")]
    type: Annotated[str, Field(description="Stable error type identifier (machine-readable)")]
    code: Annotated[
        str | None,
        Field(
            description="Fine-grained error code for programmatic handling (e.g., namespace_name_taken, "
            "feature_extractor_not_found). Present only when consumers may need to branch on a specific "
            "error condition."
        ),
    ] = None
    details: Annotated[
        dict[str, Any] | None,
        Field(description="Optional structured details to help debugging (validation errors, IDs, etc.)"),
    ] = None


class ErrorResponse(BaseModel):
    """Error response model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": False,
                    "status": 404,
                    "error": {
                        "message": "Namespace not found",
                        "type": "NotFoundError",
                        "details": {"resource": "namespace", "id": "ns_123"},
                    },
                }
            ]
        }
    )

    success: Annotated[bool, Field(description="Always false for error responses")] = False
    status: Annotated[int, Field(description="HTTP status code for this error")]
    error: Annotated[ErrorDetail, Field(description="Error details payload")]


class ValidationError(BaseModel):
    loc: Annotated[list[str | int], Field(title="Location")]
    msg: Annotated[str, Field(title="Message")]
    type: Annotated[str, Field(title="Error Type")]


class HTTPValidationError(BaseModel):
    detail: Annotated[list[ValidationError], Field(default_factory=list)]
