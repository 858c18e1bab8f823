"""Z3: the brokers refuse the changelog writes of a partition's earlier owner.

The lease (``lease.py``) can't call back a batch that the client has handed to the network, or that the brokers
acknowledge late. For those, each changelog partition has its own producer id: that of the transactional id
``TOPIC-PARTITION``, of which every new owner gets a higher epoch (InitProducerId). Its first record under that epoch is
the fence: from then on the partition's leader refuses every batch of a lower epoch (InvalidProducerEpoch), whenever it
arrives. The owner reads the changelog only after its fence, and so misses nothing that was accepted before.

No transaction is ever begun, so a write costs what it did before, and readers need no ``read_committed``. The
alternatives: Faust's ``exactly_once`` crashes, and a transaction per commit costs several requests; an owner that
tails its own changelog and repairs it leaves wrong records to be read meanwhile. Only the partition's leader decides
the order of two writers.

Trap: the coordinator forgets a transactional id after a week (``transactional.id.expiration.ms``), and the next
owner would get another producer id; so owners ask for an epoch each day, and discard it. A partition's leader forgets
an epoch after a day without writes (``producer.id.expiration.ms``); a batch that is a day old meets the lease, as each
produce request needs it. After 32,766 claims of a partition its producer id changes, too (the epoch has 16 bits):
at that one change only the lease keeps the earlier owner out.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import ConcurrentTransactions, KafkaError, for_code
from aiokafka.producer.transaction_manager import PidAndEpoch, TransactionManager
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.structs import TopicPartition

from infra.errors import end_process
from infra.faust.lease import Lease

FENCE_KEY = b"fence"
"""Key of the first record of each owner, a tombstone: readers of the table take it for a deletion of nothing."""

RETRY = 0.1
"""Seconds between two tries to reach the transaction coordinator."""

UNUSED_TIMEOUT_MS = 60_000
"""Transaction timeout, which the request must name; there are no transactions."""

logger = logging.getLogger(__name__)


class FencedSequences(TransactionManager):  # type: ignore[misc]  # aiokafka has no types
    """Producer id, epoch and sequence numbers of each claimed partition."""

    def __init__(self) -> None:
        super().__init__(None, UNUSED_TIMEOUT_MS)
        self._claims: dict[TopicPartition, PidAndEpoch] = {}
        self._numbering = self._pid_and_epoch

    def claim(self, tp: TopicPartition, producer_id: int, epoch: int) -> None:
        self._claims[tp] = PidAndEpoch(producer_id, epoch)
        self._sequence_numbers[tp] = 0

    def sequence_number(self, tp: TopicPartition) -> int:
        # aiokafka numbers a batch in one step: this, then the id and the epoch (message_accumulator.py `_pop_batch`).
        self._numbering = self._claims.get(tp, self._pid_and_epoch)
        return int(super().sequence_number(tp))

    @property
    def producer_id(self) -> int:
        return int(self._numbering.pid)

    @property
    def producer_epoch(self) -> int:
        return int(self._numbering.epoch)


class FencedProducer(AIOKafkaProducer):  # type: ignore[misc]  # as above
    """An idempotent producer that claims partitions, and sends nothing without the lease."""

    def __init__(self, *, lease: Lease, **options: Any) -> None:
        super().__init__(**options)
        self._lease = lease
        self._sequences = FencedSequences()
        self._txn_manager = self._sender._txn_manager = self._message_accumulator._txn_manager = self._sequences
        self._send_request = self._sender._send_produce_req
        self._sender._send_produce_req = self._send_with_lease

    async def _send_with_lease(self, node_id: int, batches: Any) -> None:
        await self._lease.wait()
        await self._send_request(node_id, batches)

    async def claim(self, partitions: Iterable[TopicPartition]) -> None:
        """Fence off the earlier owners of the partitions; no write to them may be in flight. Has no deadline."""
        await asyncio.gather(*(self._claim(tp) for tp in partitions))

    async def renew(self, partitions: Iterable[TopicPartition]) -> None:
        """Keep the transactional ids from expiring. Raises KafkaError."""
        for tp in partitions:
            await self._next_epoch(tp)

    async def _claim(self, tp: TopicPartition) -> None:
        while True:
            await self._lease.wait()  # or a zombie would fence off the owner, who would then have to restart
            try:
                producer_id, epoch = await self._next_epoch(tp)
                break
            except KafkaError as error:
                if not (error.retriable or isinstance(error, ConcurrentTransactions)):
                    raise
                logger.info("cannot claim %s yet: %r", tp, error)
                await asyncio.sleep(RETRY)
        self._sequences.claim(tp, producer_id, epoch)
        try:
            await self.send_and_wait(tp.topic, key=FENCE_KEY, partition=tp.partition)
        except KafkaError as error:
            end_process(f"cannot claim {tp.topic}/{tp.partition}: {error!r}", error=error)

    async def _next_epoch(self, tp: TopicPartition) -> tuple[int, int]:
        name = f"{tp.topic}-{tp.partition}"
        node = await self.client.coordinator_lookup(CoordinationType.TRANSACTION, name)
        request = InitProducerIdRequest(name, UNUSED_TIMEOUT_MS)
        response = await self.client.send(node, request, group=ConnectionGroup.COORDINATION)
        if response.error_code:
            raise for_code(response.error_code)(f"InitProducerId of {name}")
        return response.producer_id, response.producer_epoch
