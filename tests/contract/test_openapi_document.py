"""/openapi.json is an OpenAPI 3.1 document: the app path is the contract's own, the retriever path says what its page
says, and the routes of ours are described by the same schemas."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from gateway import event_ids

CONTRACT = Path(__file__).parents[2].parent / "shared" / "contract"
APP_PATH = "/v1/public/apps/{slug}/interactions"
RETRIEVER_PATH = "/v1/public/retrievers/{public_name}/interactions"

OURS = {path + suffix for path in (APP_PATH, RETRIEVER_PATH) for suffix in ("/batch", "/validate", ".gif")}
ENVELOPED = {"400", "401", "403", "404", "408", "413", "415", "429", "500", "503"}

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


def operations(document: Document) -> dict[str, Document]:
    """The one operation of each path."""
    found = {}
    for path, item in document["paths"].items():
        [(method, found[path])] = item.items()
        assert method == ("get" if path.endswith(".gif") else "post")
    return found


def parameters(operation: Document) -> dict[tuple[str, str], Document]:
    return {(parameter["in"], parameter["name"]): parameter for parameter in operation["parameters"]}


def json_schema(content: Document) -> Any:
    return content["content"]["application/json"]["schema"]


def validator(document: Document, schema: Document) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


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

    schemes = document["components"]["securitySchemes"]
    as_on_the_page, key_in_query = ([schemes[name] for name in alternative] for alternative in operation["security"])
    assert as_on_the_page == [
        {"type": "http", "scheme": "bearer"},
        {"type": "apiKey", "in": "header", "name": "X-Public-API-Key"},
    ]
    assert key_in_query == [as_on_the_page[0], {"type": "apiKey", "in": "query", "name": "public_api_key"}]
    required = {place: parameter["required"] for place, parameter in parameters(operation).items()}
    assert required.items() >= {("path", "public_name"): True, ("header", "X-Session-ID"): False}.items()
    assert sum(required.values()) == 1  # what we add is optional

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
    for path, operation in operations(document).items():
        responses = operation["responses"]
        assert list(responses) == sorted(responses)
        assert set(responses) - ENVELOPED == {"200", "422"}
        for status in ENVELOPED & set(responses):
            assert json_schema(responses[status]) == {"$ref": "#/components/schemas/ErrorResponse"}
        if path in (APP_PATH, RETRIEVER_PATH) or path.endswith(".gif"):
            assert json_schema(responses["422"]) == {"$ref": "#/components/schemas/HTTPValidationError"}
        if path != APP_PATH:  # which has what the contract lists
            assert {"404", "429", "500", "503"} <= set(responses)
            assert {"401", "403"} <= set(responses) or path.startswith(APP_PATH)
            assert "Retry-After" in responses["503"]["headers"]
            assert {"Retry-After", "RateLimit-Limit"} <= set(responses["429"]["headers"])


def test_every_operation_says_how_to_send_an_event_again(document: Document) -> None:
    for path, operation in operations(document).items():
        if path == APP_PATH:  # not among the contract's parameters, so it is in the text
            about = document["info"]["description"]
            assert "`Idempotency-Key`" in about
            assert "`event_id`" in about
            continue
        chars_max = event_ids.BATCH_KEY_CHARS_MAX if path.endswith("/batch") else event_ids.CHARS_MAX
        for place in (("header", "Idempotency-Key"), ("query", "event_id")):
            parameter = parameters(operation)[place]
            assert not parameter["required"]
            check = jsonschema.Draft202012Validator(parameter["schema"])
            assert check.is_valid("a.B_3:-" + "x" * (chars_max - 7))
            assert not any(check.is_valid(key) for key in ("", "ä", "a b", "x" * (chars_max + 1)))


def test_it_is_an_openapi_3_1_document(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(document["info"])
    assert set(document["paths"]) == {APP_PATH, RETRIEVER_PATH} | OURS
    operation_ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(operation_ids)) == len(operation_ids)
    assert {tag for operation in operations(document).values() for tag in operation["tags"]} == {
        tag["name"] for tag in document["tags"]
    }
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(document):
        assert resolved(document, reference)


def test_nothing_is_described_that_nobody_refers_to(document: Document) -> None:
    used = set(reachable(document, document["paths"]))
    for kind in ("schemas", "headers"):
        assert {f"#/components/{kind}/{name}" for name in document["components"][kind]} <= used


def test_examples_are_what_their_schemas_say(document: Document) -> None:
    examples = 0
    for operation in operations(document).values():
        bodies = [operation.get("requestBody", {"content": {}}), *operation["responses"].values()]
        media = [each for body in bodies for each in body["content"].values()] + operation["parameters"]
        for each in media:
            if "example" in each:
                validator(document, each["schema"]).validate(each["example"])
                examples += 1
    assert examples >= 10


EVENTS = {
    APP_PATH: {"event_type": "click", "anything": [1]},
    RETRIEVER_PATH: {"document_id": "doc_1", "interaction_type": ["view"], "position": 0},
}


@pytest.mark.parametrize("path", EVENTS)
def test_a_batch_is_any_events_in_an_array_or_an_object(document: Document, path: str) -> None:
    operation = operations(document)[f"{path}/batch"]
    assert set(operation["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    batch = validator(document, json_schema(operation["requestBody"]))
    event = EVENTS[path]
    for body in (
        [event],
        [event, None, 1, {}],
        {"events": [event], "sent_at": 1763800000123},
        {"events": [[]], "a": 1},
    ):
        assert batch.is_valid(body)
        assert batch.is_valid({"events": body} if isinstance(body, list) else body["events"])
    for body in ([], {}, {"events": []}, {"events": event}, event, None, [event] * 1001):
        assert not batch.is_valid(body)
    either = validator(document, json_schema(operations(document)[f"{path}/validate"]["requestBody"]))
    assert either.is_valid(event)
    assert either.is_valid([event])
    assert not either.is_valid([])


WARNING = {"code": "event_id_invalid", "loc": ["event_id"], "message": "Not taken for the event's id"}
DETAIL = [{"loc": ["body", 1, "position"], "msg": "Input should be a valid integer", "type": "int_type"}]
ACCEPTED = {"event_id": "a", "durability": "spool"}
REHEARSED = {"event_id": "a", "durability": "none", "row": {"event_id": "a"}}
REJECTED_RESULT = {"index": 1, "status": "rejected", "detail": DETAIL}
UNAVAILABLE_RESULT = {
    "index": 2,
    "status": "unavailable",
    "event_id": "order-2",
    "error": {"message": "The spool is full", "type": "ServiceUnavailableError", "code": "spool_full"},
}


@pytest.mark.parametrize("path", EVENTS)
def test_answers_that_the_gateway_gives_are_documented(document: Document, path: str) -> None:
    paths = operations(document)

    def answers(suffix: str, status: str) -> jsonschema.Draft202012Validator:
        return validator(document, json_schema(paths[path + suffix]["responses"][status]))

    for warnings in ({}, {"warnings": [WARNING]}):
        answers("", "200").validate({"success": True, **ACCEPTED, **warnings})
        accepted = {"index": 0, "status": "accepted", **ACCEPTED, **warnings}
        results = [accepted, REJECTED_RESULT, UNAVAILABLE_RESULT]
        answers("/batch", "200").validate({"success": True, "results": results, **warnings})
        answers("/validate", "200").validate({"success": True, "dry_run": True, **REHEARSED, **warnings})
        rehearsed = {"index": 0, "status": "accepted", **REHEARSED, **warnings}
        answers("/validate", "200").validate(
            {"success": True, "dry_run": True, "results": [rehearsed, REJECTED_RESULT], **warnings}
        )
    answers("/batch", "422").validate({"success": False, "results": [REJECTED_RESULT]})
    answers("/batch", "422").validate({"detail": DETAIL})
    answers("/validate", "422").validate({"success": False, "dry_run": True, "results": [REJECTED_RESULT]})
    answers("/validate", "422").validate({"detail": DETAIL})
    assert not answers("/batch", "200").is_valid({"success": True, "results": [{"index": 0, "status": "accepted"}]})
    assert not answers("/batch", "200").is_valid({"success": True, "results": [REJECTED_RESULT | {"status": "lost"}]})
    assert not answers("/validate", "200").is_valid({"success": True, **ACCEPTED})


@pytest.mark.parametrize("path", EVENTS)
def test_the_pixel_takes_every_field_of_its_event(document: Document, path: str) -> None:
    operation = operations(document)[f"{path}.gif"]
    reference = json_schema(operations(document)[path]["requestBody"])["$ref"]
    event = resolved(document, reference)
    fields = {name: parameter for (place, name), parameter in parameters(operation).items() if place == "query"}
    fields.pop("event_id")
    assert list(fields) == list(event["properties"])
    assert {name for name, parameter in fields.items() if parameter["required"]} == set(event["required"])
    for name, parameter in fields.items():
        as_text = "content" in parameter
        assert as_text == (name in ("metadata", "query_snapshot"))
        check = jsonschema.Draft202012Validator(json_schema(parameter) if as_text else parameter["schema"])
        is_text = check.is_valid("view")
        assert check.is_valid(None) == (parameter["required"] is False and not is_text)
        assert parameter["description"] == event["properties"][name]["description"]
    answer = operation["responses"]["200"]
    assert set(answer["content"]) == {"image/gif"}
    assert resolved(document, answer["headers"]["Cache-Control"]["$ref"])["schema"]["const"] == "no-store"


def test_schema_and_endpoint_agree_on_the_contracts_example(document: Document, contract: Document) -> None:
    """The schema is not merely equal: it takes and refuses what it should."""
    event = validator(document, {"$ref": "#/components/schemas/InteractionRequest"})
    assert event.is_valid({"event_type": "click", "position": 2, "anything": [1]})
    assert not event.is_valid({"position": 2})
    assert not event.is_valid({"event_type": "click", "position": "2"})
