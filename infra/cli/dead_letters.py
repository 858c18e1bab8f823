"""``shrinkstream dead-letters``: records that could not be read, and sending them back."""

from dataclasses import dataclass

import click
import orjson

from infra.kafka import Producer, require_topics
from infra.settings import Settings
from streams.events import HEADERS
from streams.log_reader import LogReader, Record
from streams.topics import Topics

SHOWN_BYTES = 120


@dataclass(frozen=True)
class DeadLetter:
    """A record that was put aside: where it came from, what it is, what is wrong with it."""

    topic: str
    partition: int
    offset: int
    error: str
    key: bytes | None
    value: bytes

    @property
    def place(self) -> tuple[str, int, int]:
        return (self.topic, self.partition, self.offset)

    def as_dict(self) -> dict[str, object]:
        return {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "error": self.error,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "value": self.value.decode(errors="replace"),
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
        )


async def list_dead_letters(settings: Settings, *, as_json: bool) -> None:
    for letter in await _letters(settings):
        if as_json:
            click.echo(orjson.dumps(letter.as_dict()))
            continue
        shown = letter.value[:SHOWN_BYTES].decode(errors="replace")
        click.echo(f"{letter.topic}/{letter.partition}@{letter.offset}  {letter.error}  {shown!r}")


async def retry_dead_letters(settings: Settings, topic: str | None) -> None:
    """Write the records back to where they came from, for instance after an upgrade that can read them.

    One that still can't be read is put aside again; what was read already is a repeat, and changes nothing.
    """
    producer = Producer(settings)
    await producer.start()
    try:
        sent = 0
        for letter in await _letters(settings):
            if topic is None or letter.topic == topic:
                await (await producer.send(letter.topic, letter.key, letter.value, HEADERS))
                sent += 1
    finally:
        await producer.stop()
    click.echo(f"{sent} records written back")


async def _letters(settings: Settings) -> list[DeadLetter]:
    """Each record once, although every consumer group that met it put it aside."""
    topics = Topics(settings.topic_prefix)
    await require_topics(settings, [topics.dead_letters])
    letters: dict[tuple[str, int, int], DeadLetter] = {}
    async with LogReader.open(settings) as reader:
        partitions = await reader.partitions(topics.dead_letters)
        async for records in reader.read(dict.fromkeys(partitions)):
            for record in records:
                letter = DeadLetter.of(record)
                letters[letter.place] = letter
    return sorted(letters.values(), key=lambda letter: letter.place)
