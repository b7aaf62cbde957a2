"""The limit of a consumer in Python: librdkafka's `consume`, and nothing done with the messages.

`python -m tests.bench.peers.confluent_alone --brokers HOST:PORT --rows N`.
"""

import argparse

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from tests.bench.events import TOPIC
from tests.bench.peers.report import Progress

CALL_MESSAGES = 1_000
"""Ten times as many do not fit the processor's cache: 1.0 million rows/s instead of 1.4."""
SETTINGS = {
    "group.id": "confluent-alone",
    "enable.auto.commit": False,
    "check.crcs": True,  # as aiokafka does
    # It fetches 100,000 messages of each partition, and pauses for this long: by default for a second, in which
    # whoever reads a backlog has read them all, and waits: 150,000 rows/s at a core that is idle for three quarters.
    "fetch.queue.backoff.ms": 1,
}


def run(brokers: str, rows: int) -> None:
    consumer = Consumer({"bootstrap.servers": brokers, **SETTINGS})
    partitions = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
    consumer.assign([TopicPartition(TOPIC, partition, OFFSET_BEGINNING) for partition in partitions])
    progress = Progress()
    while progress.rows < rows:
        messages = consumer.consume(CALL_MESSAGES, timeout=0.2)
        for error in filter(None, map(Message.error, messages)):
            raise KafkaException(error)
        progress.add(len(messages))
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
