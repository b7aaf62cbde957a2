"""Every record is one row, whatever dies, sleeps, leaves or joins, and whenever."""

import pytest

from deploy.local.stack import Stack
from tests.chaos.arena import PARTITIONS, arena
from tests.chaos.faulty_clickhouse import FaultyClickHouse

EVENTS = 3_000


@pytest.mark.parametrize("step", ["after_intent", "during_insert", "after_insert", "after_close"])
def test_killed_at_a_step(stores: Stack, seed: int, step: str) -> None:
    """A static member, so that its successor need not wait for the end of its session."""
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        for _ in range(3):
            a.produce(EVENTS)
            a.crash(step, hit=a.random.randint(1, 3))
        a.consumer().start()
        a.wait_landed()
        a.reckon()


@pytest.mark.parametrize(("step", "hit"), [("assigned", 1), ("revoked", 2)])
def test_killed_in_a_rebalance(stores: Stack, seed: int, step: str, hit: int) -> None:
    """The first `revoked` is of nothing, when the consumer joins; the second is for the one that joins next."""
    with arena(stores, seed) as a:
        a.produce(EVENTS)
        doomed = a.consumer(step, hit)
        doomed.spawn()
        if step == "revoked":
            a.wait_until(lambda: a.landed() > 0)
            a.produce(EVENTS)
        a.consumer().start()
        a.wait_ended(doomed)
        a.produce(EVENTS)
        a.wait_landed()
        a.reckon()


def test_killed_at_random_while_consumers_come_and_go(stores: Stack, seed: int, chaos_events: int) -> None:
    with arena(stores, seed) as a:
        for _ in range(3):
            a.consumer().spawn()
        while len(a.produced) < chaos_events:
            a.produce(chaos_events // 20)
            if a.random.random() < 0.5:
                victim = a.random.choice([consumer for consumer in a.consumers if consumer.is_running])
                a.random.choice([victim.kill, victim.stop])()
                a.random.choice([victim.spawn, a.consumer().spawn])()
        a.wait_landed()
        a.reckon()


def test_a_zombie_wakes_up_behind_its_session(stores: Stack, seed: int) -> None:
    """SIGSTOP with batches in flight; another takes over, and lands everything; then SIGCONT."""
    with arena(stores, seed) as a:
        zombie = a.consumer()
        zombie.start()
        a.produce(EVENTS)
        a.wait_until(lambda: a.landed() > a.random.randint(1, EVENTS // 2))
        zombie.suspend()
        a.produce(EVENTS)
        a.consumer().start()
        a.wait_landed()
        zombie.resume()
        a.produce(EVENTS)
        a.wait_landed()
        a.reckon()


@pytest.mark.parametrize("store", ["clickhouse", "kafka"])
def test_a_store_is_killed_under_load(stores: Stack, seed: int, store: str) -> None:
    with arena(stores, seed) as a:
        a.consumer().start()
        for _ in range(3):
            a.produce(EVENTS)
            a.wait_until(lambda: a.landed() >= a.random.randrange(len(a.produced)))
            stores[store].kill()
            stores[store].start()
        a.produce(EVENTS)
        a.wait_landed()
        a.reckon()


@pytest.mark.parametrize("step", [None, "lost_rows_staged", "lost_rows_moved"])
def test_clickhouse_remembers_a_token_and_not_its_rows(stores: Stack, seed: int, step: str | None) -> None:
    """What a kill between the two leaves, and a replay that the views have seen; some of it with a crash in the
    midst of the repair. Of the first INSERT to be answered: so no intent is closed yet."""
    boundary_ms = 1_764_547_200_000  # 2025-12-01T00:00:00Z
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        a.produce(EVENTS, [boundary_ms + (index if index % 2 else -index - 1) for index in range(EVENTS)])
        a.crash("after_insert")
        a.lose_rows()
        if step is not None:
            a.crash(step)
        consumer = a.consumer()
        consumer.start()
        a.wait_landed()
        if step != "lost_rows_moved":  # the one that died may have moved them all
            a.wait_until(lambda: a.metric(consumer, "consumer_rows_put_back_total") > 0)
        assert "acknowledged rows that it does not have" in a.logs(lines=1_000)
        a.reckon()
        assert not a.value("SELECT countIf(name LIKE '%lost%') FROM system.tables WHERE database = currentDatabase()")


def test_answers_to_inserts_are_lost(stores: Stack, seed: int) -> None:
    """Whether they landed is not known, so they are sent again: by us, who ask the table first, and by nobody else."""
    proxy = FaultyClickHouse(stores.ports.clickhouse)
    try:
        with arena(stores, seed) as a:
            consumer = a.consumer(CONSUMER_CLICKHOUSE_URL=f"http://127.0.0.1:{proxy.port}/{a.name}")
            consumer.start()
            proxy.keeps_answers = True
            a.produce(EVENTS)
            a.wait_until(lambda: proxy.kept >= 3)
            proxy.keeps_answers = False
            a.wait_landed()
            a.wait_until(lambda: a.metric(consumer, "consumer_insert_failures_total") == proxy.kept)
            a.reckon()
    finally:
        proxy.stop()


def test_clickhouse_hangs(stores: Stack, seed: int) -> None:
    with arena(stores, seed, CONSUMER_INSERT_TIMEOUT_MS="1000") as a:
        a.consumer().start()
        a.produce(EVENTS)
        a.wait_until(lambda: a.landed() > 0)
        stores["clickhouse"].suspend()
        try:
            a.produce(EVENTS)
            a.wait_until_unready(a.consumers[0], "ClickHouse takes no inserts")
        finally:
            stores["clickhouse"].resume()
        a.wait_landed()
        a.reckon()


def test_the_table_is_missing_for_a_while(stores: Stack, seed: int) -> None:
    """Not a row's fault: no dead letter, no crash; the rest lands once it is back."""
    with arena(stores, seed) as a:
        consumer = a.consumer()
        consumer.start()
        a.produce(EVENTS)
        a.wait_landed()
        a.execute("RENAME TABLE app_interactions TO elsewhere")
        a.produce(EVENTS)
        a.wait_until_unready(consumer, "ClickHouse takes no inserts")
        a.execute("RENAME TABLE elsewhere TO app_interactions")
        a.wait_landed()
        assert consumer.is_running
        a.reckon()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (164, "Cannot execute query in readonly mode. (READONLY)"),
        (241, "Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED)"),
        (243, "Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)"),
        (252, "Too many parts (3000). Merges are processing significantly slower than inserts. (TOO_MANY_PARTS)"),
        (516, "sluice: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)"),
        (9999, "Something that nobody has heard of. (UNKNOWN)"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_clickhouse_refuses_for_reasons_of_its_own(stores: Stack, seed: int, code: int, text: str) -> None:
    """No dead letter, no crash; what came meanwhile makes fewer and larger batches."""
    proxy = FaultyClickHouse(stores.ports.clickhouse)
    try:
        with arena(stores, seed) as a:
            consumer = a.consumer(CONSUMER_CLICKHOUSE_URL=f"http://127.0.0.1:{proxy.port}/{a.name}")
            consumer.start()
            a.produce(EVENTS)
            a.wait_landed()
            proxy.error = (code, text)
            a.produce(EVENTS)
            a.wait_until_unready(consumer, text)
            refused = proxy.refused
            a.wait_until(lambda: proxy.refused >= refused + 2)
            a.produce(EVENTS)
            proxy.error = None
            a.wait_landed()
            assert consumer.is_running
            assert not a.dead_letter_keys()
            a.reckon()
    finally:
        proxy.stop()


def test_the_window_overflows_between_crash_and_replay(stores: Stack, seed: int) -> None:
    """ClickHouse has forgotten the token of the range that is open: its rows are compared by offset."""
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        a.execute("ALTER TABLE app_interactions MODIFY SETTING non_replicated_deduplication_window = 4")
        a.produce(EVENTS)
        a.crash("after_insert", hit=2)
        before = a.landed()
        assert 0 < before < EVENTS
        a.overflow_window(blocks=8)
        a.consumer().start()
        a.wait_landed(EVENTS + 8)
        assert "outlived the deduplication window" in a.logs(lines=1_000)
        a.execute("ALTER TABLE app_interactions DELETE WHERE app = 'filler' SETTINGS mutations_sync = 2")
        a.reckon(rollup=False)


def test_a_batch_spans_a_month_boundary(stores: Stack, seed: int) -> None:
    """One block, two parts: a replay must drop, or land, each of them."""
    boundary_ms = 1_764_547_200_000  # 2025-12-01T00:00:00Z
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        for _ in range(2):
            a.produce(EVENTS, [boundary_ms + (index - EVENTS // 2) for index in range(EVENTS)])
            a.crash("after_insert", hit=a.random.randint(1, 3))
        a.consumer().start()
        a.wait_landed()
        assert a.value("SELECT uniqExact(toYYYYMM(received_at)) FROM app_interactions") == 2
        a.reckon()


def test_a_replay_by_a_build_with_other_batch_settings(stores: Stack, seed: int) -> None:
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        for rows in (700, 50, 300):
            a.produce(EVENTS)
            a.crash("after_insert", hit=a.random.randint(1, 3), CONSUMER_BATCH_ROWS_MAX=str(rows))
        a.consumer(CONSUMER_BATCH_ROWS_MAX="123").start()
        a.wait_landed()
        a.reckon()


def test_another_group_resumes_behind_what_the_table_holds(stores: Stack, seed: int) -> None:
    """Offsets expired or the group renamed: no blind re-read of what is there, and nothing left out."""
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        a.produce(EVENTS)
        a.crash("during_insert", hit=5)
        a.env["CONSUMER_GROUP_ID"] += "_renamed"
        a.produce(EVENTS)
        resumed = a.consumer()
        resumed.start()
        a.wait_until(lambda: a.landed_of_produced() == len(a.produced))
        assert "the table holds rows of this partition" in a.logs(lines=1_000)
        resumed.stop()
        # Partitions of which the table holds nothing begin at their first record, like any new group's.
        a.forget_older()
        a.reckon()


def test_a_topic_is_deleted_and_made_again(stores: Stack, seed: int) -> None:
    """Its offsets start over: nothing of the new one is taken for a repeat of the old one."""
    with arena(stores, seed) as a:
        a.consumer().start()
        a.produce(EVENTS)
        a.wait_landed()
        a.consumers[0].stop()
        a.make_topic_again()
        a.produce(EVENTS)
        a.consumer().start()
        a.wait_landed()
        a.reckon(offsets=False)


def test_kafka_no_longer_holds_an_open_range(stores: Stack, seed: int) -> None:
    """Its partition stops with an alarm, the others go on."""
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        a.produce(EVENTS)
        a.crash("after_intent", hit=PARTITIONS)
        lost = a.random.randrange(PARTITIONS)
        landed_of_lost = a.landed_in(lost)
        a.delete_records(lost)
        consumer = a.consumer()
        consumer.spawn()
        a.wait_until_unready(consumer, f"app_interactions/{lost}")
        for partition in set(range(PARTITIONS)) - {lost}:
            a.wait_until(lambda p=partition: a.landed_in(p) == a.produced_in[p])
        assert a.landed_in(lost) == landed_of_lost
        assert consumer.is_running


def test_poison_becomes_dead_letters_and_its_batch_lands(stores: Stack, seed: int) -> None:
    with arena(stores, seed) as a:
        a.env["CONSUMER_GROUP_INSTANCE_ID"] = "the-one"
        for _ in range(2):
            a.produce(EVENTS)
            a.poison(7)
            a.produce(EVENTS)
            a.crash("dead_letter_written", hit=a.random.randint(1, 3))
        a.consumer().start()
        a.wait_landed()
        a.wait_until(lambda: a.dead_letter_keys() == a.poisoned)
        a.reckon()


def test_a_topic_full_of_poison_stops_instead_of_emptying_itself(stores: Stack, seed: int) -> None:
    with arena(stores, seed) as a:
        consumer = a.consumer()
        consumer.start()
        a.poison(400)
        a.wait_until_unready(consumer, "rows are bad")
        assert consumer.is_running
        assert len(a.dead_letter_keys()) < 100


def test_rows_with_a_column_that_the_table_lacks_keep_its_value(stores: Stack, seed: int) -> None:
    with arena(stores, seed) as a:
        a.execute("ALTER TABLE app_interactions DROP COLUMN dwell_ms")
        a.consumer().start()
        a.produce(EVENTS, dwell_ms=7)
        a.wait_landed()
        assert a.value("SELECT countIf(JSONExtractInt(extra, 'dwell_ms') = 7) FROM app_interactions") == EVENTS
        a.reckon()


def test_three_consumers_share_the_partitions(stores: Stack, seed: int) -> None:
    with arena(stores, seed) as a:
        for _ in range(3):
            a.consumer().spawn()
        a.produce(EVENTS)
        a.wait_landed()
        a.consumers[0].stop()
        a.produce(EVENTS)
        a.wait_landed()
        a.reckon()
