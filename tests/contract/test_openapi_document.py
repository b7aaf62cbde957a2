"""/openapi.json is an OpenAPI 3.1 document whose app path is the contract's own, and has the retriever path besides."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

CONTRACT = Path(__file__).parents[2].parent / "shared" / "contract"
APP_PATH = "/v1/public/apps/{slug}/interactions"
RETRIEVER_PATH = "/v1/public/retrievers/{public_name}/interactions"

Document = dict[str, Any]


@pytest.fixture
async def document(client: httpx.AsyncClient) -> Document:
    response = await client.get("/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    document: Document = response.json()
    return document


def contract_text(name: str) -> str:
    path = CONTRACT / name
    if not path.exists():
        pytest.skip(f"the contract is not beside this checkout: {path}")
    return path.read_text("utf-8")


@pytest.fixture
def contract() -> Document:
    """The OpenAPI document inside the app contract, behind a fence of four backticks."""
    fenced = re.search(
        r"^````yaml[^\n]*\n(.*?)^````", contract_text("track-app-interaction.md"), re.DOTALL | re.MULTILINE
    )
    assert fenced is not None
    document: Document = yaml.safe_load(fenced[1])
    return document


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolved(document: Document, reference: str) -> Any:
    node: Any = document
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        node = node[part]
    return node


def reachable(document: Document, node: object) -> dict[str, Any]:
    """Every schema that a node refers to, directly or not, by reference."""
    found: dict[str, Any] = {}
    queue = list(references(node))
    while queue:
        reference = queue.pop()
        if reference not in found:
            found[reference] = resolved(document, reference)
            queue += references(found[reference])
    return found


def test_app_path_is_the_contracts(document: Document, contract: Document) -> None:
    served, agreed = (copy.deepcopy(d["paths"][APP_PATH]) for d in (document, contract))
    assert served["post"].pop("description")  # prose, ours
    assert agreed["post"].pop("description")
    assert served == agreed


def test_schemas_of_the_app_path_are_the_contracts(document: Document, contract: Document) -> None:
    served, agreed = (reachable(d, d["paths"][APP_PATH]) for d in (document, contract))
    assert set(agreed) == {
        f"#/components/schemas/{name}"
        for name in ("InteractionRequest", "ErrorResponse", "HTTPValidationError", "ErrorDetail", "ValidationError")
    }
    assert served == agreed


def test_app_path_asks_for_no_authentication(document: Document, contract: Document) -> None:
    assert contract["security"] == []
    assert not document.get("security")
    assert "security" not in document["paths"][APP_PATH]["post"]


def test_retriever_path_says_what_the_page_says(document: Document) -> None:
    page = contract_text("track-retriever-interaction.txt")
    operation = document["paths"][RETRIEVER_PATH]["post"]
    assert operation["summary"] == "Track Interaction"
    assert operation["summary"] in page

    [security] = operation["security"]
    schemes = [document["components"]["securitySchemes"][name] for name in security]
    assert {"type": "http", "scheme": "bearer"} in schemes
    assert {"type": "apiKey", "in": "header", "name": "X-Public-API-Key"} in schemes
    parameters = {(p["in"], p["name"]): p["required"] for p in operation["parameters"]}
    assert parameters == {("path", "public_name"): True, ("header", "X-Session-ID"): False}

    schema = resolved(document, operation["requestBody"]["content"]["application/json"]["schema"]["$ref"])
    assert schema["required"] == ["document_id", "interaction_type", "position"]
    properties = schema["properties"]
    assert set(properties) == {
        *("document_id", "interaction_type", "position", "execution_id", "query_snapshot"),
        *("document_score", "result_set_size", "session_id", "metadata"),
    }
    assert all(f"\n{name}\n" in page for name in properties)
    options = page.split("Available options:\n")[1].split("\nposition")[0].replace("\n", "").split(",")
    assert properties["interaction_type"]["items"]["enum"] == options
    assert len(options) == 15
    assert properties["interaction_type"]["minItems"] == 1
    assert properties["position"]["minimum"] == 0
    assert {"type": "integer", "minimum": 1} in properties["result_set_size"]["anyOf"]
    assert {"200", "401", "403", "404", "422", "500"} <= set(operation["responses"])


def test_every_error_is_documented_in_its_shape(document: Document) -> None:
    for path in (APP_PATH, RETRIEVER_PATH):
        for status, response in document["paths"][path]["post"]["responses"].items():
            schema = response["content"]["application/json"]["schema"]
            if status == "200":
                assert schema["type"] == "object"
            else:
                model = "HTTPValidationError" if status == "422" else "ErrorResponse"
                assert schema == {"$ref": f"#/components/schemas/{model}"}


def test_it_is_an_openapi_3_1_document(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(document["info"])
    assert set(document["paths"]) == {APP_PATH, RETRIEVER_PATH}
    operation_ids = [path["post"]["operationId"] for path in document["paths"].values()]
    assert len(set(operation_ids)) == 2
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(document):
        assert resolved(document, reference)


def test_schema_and_endpoint_agree_on_the_contracts_example(document: Document, contract: Document) -> None:
    """The schema is not merely equal: it takes and refuses what it should."""
    validator = jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/InteractionRequest", "components": document["components"]}
    )
    assert validator.is_valid({"event_type": "click", "position": 2, "anything": [1]})
    assert not validator.is_valid({"position": 2})
    assert not validator.is_valid({"event_type": "click", "position": "2"})
