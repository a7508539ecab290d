"""From the broker to the database and back: a bounded queue, batches that share a commit, receipts after it.

While one batch is being committed (in a thread: a durable commit waits for the disk) the next one gathers, so the
batch size follows the load by itself. When the queue is full messages are dropped, not held: nothing is lost, because
devices resend what has no receipt. A disk that fails costs pauses, never a receipt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sanderling.codec import messages, topics
from sanderling.codec.errors import TopicError
from sanderling.codec.topics import Topic

from .errors import StorageError
from .intake import Intake, Outcome, Received
from .service import Service

log = logging.getLogger(__name__)

#: Seconds to wait after the disk has failed, and for the broker to take a receipt.
DISK_PAUSE, RECEIPT_PATIENCE = 2.0, 10.0
KINDS = ("state", "telemetry", "delta", "event")


class Ingest:
    """Receives for `service`; `publish` sends a receipt; `committed` is called after every commit."""

    def __init__(
        self, service: Service, publish: Callable[[str, bytes], Awaitable[None]], committed: Callable[[], None]
    ) -> None:
        self._service, self._publish, self._committed = service, publish, committed
        self._limits = service.settings.limits
        self._fleet = service.settings.server.fleet
        self._intake = Intake(service.store, self._limits)
        self._waiting: list[Received] = []
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._dropped = 0
        self._disk_failed = False

    @property
    def filters(self) -> list[str]:
        """What to subscribe to."""
        return [topics.every_device(self._fleet, kind) for kind in KINDS]

    @property
    def waiting(self) -> tuple[int, int]:
        """(messages, bytes) that wait for the database."""
        return len(self._waiting), self._waiting_bytes

    def receive(self, topic: str, payload: bytes) -> None:
        """Queue a message; on the event loop."""
        try:
            parsed = topics.parse(topic)
        except TopicError:
            return  # matched our filter, but no device of ours may have such a name
        if not payload:
            return  # a retained message being removed
        if len(self._waiting) >= self._limits.queue_messages or (
            self._waiting and self._waiting_bytes + len(payload) > self._limits.queue_bytes
        ):
            self._dropped += 1
            if self._dropped == 1:
                log.warning("the queue is full: messages are dropped, devices send them again")
            return
        self._waiting.append(Received(parsed.name, parsed.kind, payload))
        self._waiting_bytes += len(payload)
        self._arrived.set()

    async def run(self) -> None:
        """Commit what arrives, until cancelled."""
        while True:
            await self._arrived.wait()
            batch = self._waiting[: self._limits.batch_messages]
            self._waiting = self._waiting[len(batch) :]
            self._waiting_bytes -= sum(len(r.payload) for r in batch)
            if not self._waiting:
                self._arrived.clear()
            try:
                outcome = await asyncio.to_thread(self._intake.commit, batch)
            except StorageError as error:
                if not self._disk_failed:
                    log.error("%s", error)
                self._disk_failed = True
                await asyncio.sleep(DISK_PAUSE)
                continue
            if self._disk_failed:
                log.info("the database can be written again")
                self._disk_failed = False
            self._committed()
            for kind, subject in outcome.changes:
                self._service.changes.tell(kind, subject)
            await self._send(outcome)

    async def _send(self, outcome: Outcome) -> None:
        sent = (
            self._publish(topics.build(Topic(self._fleet, "receipt", device)), messages.encode(receipt))
            for device, receipt in outcome.receipts
        )
        results = await asyncio.gather(*sent, return_exceptions=True)
        for result in results:
            # no connection, no answer, refused: the device asks again, and is told "duplicate"
            if isinstance(result, BaseException) and not isinstance(result, OSError | TimeoutError):
                raise result
