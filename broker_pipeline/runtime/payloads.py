"""Messages that the machine has seen and will need again: a bounded cache in front of the log."""

from __future__ import annotations

from collections import OrderedDict

from broker_pipeline.broker.port import Broker, Message

CACHE_BYTES_MAX = 64 << 20
"""Some 40,000 packages of 1 KiB that wait for a place or their turn; the rest is read again."""
MESSAGE_BYTES = 700
"""What a message takes besides its data (measured): without it, small ones would have no bound."""


class WaitingMessages:
    """The newest of the messages that wait, by stream sequence."""

    def __init__(self, broker: Broker, stream: str, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._broker = broker
        self._stream = stream
        self._bytes_max = bytes_max
        self._bytes = 0
        self._messages: OrderedDict[int, Message] = OrderedDict()

    def put(self, message: Message) -> None:
        """Keep a message; the oldest go when there are too many bytes."""
        self._messages[message.stream_seq] = message
        self._bytes += len(message.data) + MESSAGE_BYTES
        while self._bytes > self._bytes_max:
            _, oldest = self._messages.popitem(last=False)
            self._bytes -= len(oldest.data) + MESSAGE_BYTES

    def drop(self, stream_seq: int) -> None:
        """The message is not needed any more."""
        message = self._messages.pop(stream_seq, None)
        if message is not None:
            self._bytes -= len(message.data) + MESSAGE_BYTES

    async def take(self, stream_seq: int) -> Message:
        """The message, from here or from the log. Raises NotFoundError where the log lost it."""
        message = self._messages.pop(stream_seq, None)
        if message is None:
            return await self._broker.get_message(self._stream, stream_seq)
        self._bytes -= len(message.data) + MESSAGE_BYTES
        return message
