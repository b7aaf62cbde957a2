"""README's examples do what README says."""

import json
import re
import subprocess
from pathlib import Path

from tests.integration.pipelines import Pipeline
from tests.integration.test_pipeline import rows_when

README = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")


def shell_block(containing: str) -> str:
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if containing in block]
    return str(block)


def run(pipeline: Pipeline, block: str) -> str:
    clickhouse = pipeline.clickhouse_dsn.removesuffix("/interactions")
    script = block.replace("http://127.0.0.1:8000", pipeline.gateway_url)
    script = script.replace("http://127.0.0.1:8123", clickhouse)
    return subprocess.run(["sh", "-euc", script], check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_app_example(pipeline: Pipeline) -> None:
    answer = json.loads(run(pipeline, shell_block("/v1/public/apps/demo/interactions \\")))
    assert answer == {"success": True, "event_id": answer["event_id"], "durability": "kafka"}
    rows_when(pipeline, bool, f"SELECT 1 FROM app_interactions WHERE event_id = '{answer['event_id']}'")


def test_the_retriever_example(pipeline: Pipeline) -> None:
    answer = json.loads(run(pipeline, shell_block("/v1/public/retrievers/demo/interactions")))
    assert answer["success"] is True
    rows_when(pipeline, bool, f"SELECT 1 FROM retriever_interactions WHERE event_id = '{answer['event_id']}'")


def test_the_batch_example_sent_again(pipeline: Pipeline) -> None:
    """README shows the answer, too; and says that a repeat stays one row."""
    [shown] = re.findall(r'```json\n(\{"success":true,"results".*?)```', README, re.DOTALL)
    for _ in range(2):
        assert json.loads(run(pipeline, shell_block("/interactions/batch"))) == json.loads(shown)
    test_the_app_example(pipeline)
    [row] = rows_when(pipeline, bool, "SELECT count() AS n FROM app_interactions WHERE event_id IN ('s-1', 's-2')")
    assert row["n"] == 2


def test_the_query_examples(pipeline: Pipeline) -> None:
    test_the_app_example(pipeline)
    assert "click\tdoc_abc123\t2\tred sneakers" in run(pipeline, shell_block("SELECT event_type, document_id"))
    [python] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(python.replace("http://127.0.0.1:8123/interactions", pipeline.clickhouse_dsn), namespace)
