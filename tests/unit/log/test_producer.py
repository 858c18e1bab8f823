"""What is known of the producer without a Kafka."""

from infra.observability import metrics
from infra.settings import Settings
from streams.log.producer import EventLog
from streams.log.topics import Topics


def test_write_errors_are_counted_from_zero() -> None:
    # `increase()` of a series that begins at 1 is 0: the alert would miss the first error.
    EventLog(Settings(topic_prefix="counted"))
    counted = {
        sample.labels["topic"]: sample.value
        for family in metrics.PRODUCE_ERRORS.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert {topic: counted.get(topic) for topic in Topics("counted").configs()} == dict.fromkeys(
        Topics("counted").configs(), 0.0
    )
