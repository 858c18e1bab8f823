"""``shrinkstream dead-letters``: list dead letters and republish them."""

from dataclasses import dataclass

import click

from infra.cli.group import print_json
from infra.kafka.producer import Producer
from infra.kafka.topics import require_topics
from infra.settings import Settings
from streams.events.base import HEADERS
from streams.log.reader import LogReader, Record
from streams.log.topics import Topics

SHOWN_BYTES = 120


@dataclass(frozen=True)
class DeadLetter:
    """A record of the dead-letter topic, with its origin and its decoding error."""

    topic: str
    partition: int
    offset: int
    error: str
    key: bytes | None
    value: bytes
    truncated_from: int | None = None
    """Bytes of the original record, if it was too large for the topic."""

    @property
    def origin(self) -> tuple[str, int, int]:
        """Topic, partition and offset of the original record."""
        return (self.topic, self.partition, self.offset)

    def as_dict(self) -> dict[str, object]:
        return {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "error": self.error,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "value": self.value.decode(errors="replace"),
            "truncatedFrom": self.truncated_from,
        }

    @classmethod
    def of(cls, record: Record) -> "DeadLetter":
        headers = {name: value.decode(errors="replace") for name, value in record.headers}
        return cls(
            headers.get("dead-letter-topic", "?"),
            int(headers.get("dead-letter-partition", -1)),
            int(headers.get("dead-letter-offset", -1)),
            headers.get("dead-letter-error", "?"),
            record.key,
            record.value or b"",
            int(size) if (size := headers.get("dead-letter-truncated-from")) else None,
        )


async def print_dead_letters(settings: Settings, *, as_json: bool) -> None:
    for letter in await _letters(settings):
        if as_json:
            print_json(letter.as_dict())
            continue
        shown = letter.value[:SHOWN_BYTES].decode(errors="replace")
        size = f"  truncated from {letter.truncated_from:,} bytes" if letter.truncated_from else ""
        click.echo(f"{letter.topic}/{letter.partition}@{letter.offset}  {letter.error}{size}  {shown!r}")


async def republish(settings: Settings, topic: str | None) -> None:
    """Republish dead letters to their original topics, for instance after an upgrade that can decode them.

    A record that still can't be decoded becomes a dead letter again; one that was already processed is a duplicate
    without effect. Truncated ones are skipped: no event is as large as they were.
    """
    producer = Producer(settings)
    await producer.start()
    try:
        sent = skipped = 0
        for letter in await _letters(settings):
            if topic is not None and letter.topic != topic:
                continue
            if letter.truncated_from is not None:
                skipped += 1
            else:
                await (await producer.send(letter.topic, letter.key, letter.value, HEADERS))
                sent += 1
    finally:
        await producer.stop()
    click.echo(f"{sent} records republished")
    if skipped:
        click.echo(f"{skipped} truncated records skipped", err=True)


async def _letters(settings: Settings) -> list[DeadLetter]:
    """The dead letters without duplicates: each consumer group publishes its own."""
    topics = Topics(settings.topic_prefix)
    await require_topics(settings, [topics.dead_letters])
    letters: dict[tuple[str, int, int], DeadLetter] = {}
    async with LogReader.open(settings) as reader:
        partitions = await reader.partitions(topics.dead_letters)
        async for records in reader.read(dict.fromkeys(partitions)):
            for record in records:
                letter = DeadLetter.of(record)
                letters[letter.origin] = letter
    return sorted(letters.values(), key=lambda letter: letter.origin)
