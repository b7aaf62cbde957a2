"""The limit of a consumer in Python: librdkafka's `consume`, and nothing done with the messages.

`python -m tests.bench.peers.confluent_alone --brokers HOST:PORT --rows N`.
"""

import argparse

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.bench.events import TOPIC
from tests.bench.peers.report import Progress


def run(brokers: str, rows: int) -> None:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "confluent-alone", "enable.auto.commit": False})
    partitions = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
    consumer.assign([TopicPartition(TOPIC, partition, OFFSET_BEGINNING) for partition in partitions])
    progress = Progress()
    while progress.rows < rows:
        messages = consumer.consume(10_000, timeout=0.2)
        progress.add(sum(message.value() is not None for message in messages))
    progress.print()
    consumer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()
    run(args.brokers, args.rows)


if __name__ == "__main__":
    main()
