"""The limit of whoever fills the table: the engine, fed INSERTs that lie ready in memory, with the consumer's settings.

`python -m tests.bench.peers.engine_alone --clickhouse URL --rows N --connections 1`. Each connection has one INSERT
under way. The blocks are as large as the consumer's own may be; a few, sent again and again under new tokens.
"""

import argparse
import threading
import uuid
from itertools import count, cycle
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from consumer.clickhouse import ONE_BLOCK
from consumer.settings import ConsumerSettings
from tests.bench.events import TOPIC, blocks
from tests.bench.peers.report import Progress

BLOCKS = 6


def run(clickhouse: str, rows: int, connections: int) -> None:
    limits = ConsumerSettings.model_fields
    rows_max, bytes_max = limits["batch_rows_max"].default, limits["batch_bytes_max"].default
    ready = cycle(blocks(BLOCKS, min(rows_max, max(1, rows // 10)), bytes_max))
    run_id, numbers, lock = uuid.uuid4(), count(), threading.Lock()
    clients = [_client(clickhouse) for _ in range(connections)]
    progress = Progress()
    taken = 0

    def insert(client: Client) -> None:
        nonlocal taken
        while True:
            with lock:
                if taken >= rows:
                    return
                size, block = next(ready)
                taken += size
                token = f"{run_id}-{next(numbers)}"
            settings = {**ONE_BLOCK, "insert_deduplication_token": token}
            client.raw_insert(TOPIC, insert_block=block, fmt="JSONEachRow", settings=settings)
            with lock:
                progress.add(size)

    threads = [threading.Thread(target=insert, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.print()


def _client(clickhouse: str) -> Client:
    url = urlsplit(clickhouse)
    return clickhouse_connect.get_client(
        host=url.hostname,
        port=url.port,
        database=url.path.strip("/"),
        autogenerate_session_id=False,
        compress=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clickhouse", required=True, help="http://host:port/database")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1)
    args = parser.parse_args()
    run(args.clickhouse, args.rows, args.connections)


if __name__ == "__main__":
    main()
