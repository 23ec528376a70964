"""A stand-in for bridge, run and committer in the agent's own tests: it settles what it receives, on a real broker.

It lands every envelope in a list, publishes retained receipts, and answers parts and queries with object states. The
real core has its own tests; the end-to-end tests put both together.
"""

import hashlib
import ssl
import threading
from collections import defaultdict
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from schemas.envelope import EnvelopeHead, read_head
from schemas.ids import Digest
from schemas.parts import PartHead, read_part_head
from schemas.ranges import Ranges
from schemas.receipts import ObjectState, Receipt, encode_object_state, encode_receipt
from schemas.reported import Reported, decode_reported
from schemas.topics import Kind, Topics


class FakeCore:
    """Subscribes like a bridge; settles at once, unless `is_settling` is False."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_settling: bool = True,
        max_parts: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.is_settling = is_settling
        self.max_parts = max_parts
        self.landed: list[tuple[EnvelopeHead, bytes]] = []
        self.unnumbered: list[tuple[EnvelopeHead, bytes]] = []
        self.parts: list[PartHead] = []
        self.reports: list[Reported] = []
        self.objects: dict[Digest, bytes] = {}
        self._pieces: dict[Digest, bytearray] = {}
        self._have: dict[Digest, Ranges] = defaultdict(Ranges)
        self._settled: dict[str, dict[str, Ranges]] = defaultdict(lambda: defaultdict(Ranges))
        self._run = 0
        self._lock = threading.RLock()
        self._topics = Topics()
        self._is_subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fake-core", protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._is_subscribed.set()
        self._client.on_message = self._on_message
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.connect(host, port, clean_start=True)
        self._client.loop_start()
        assert self._is_subscribed.wait(10)

    def close(self) -> None:
        """Leave: the broker then has nobody to give samples to."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle_all(self, device: str) -> None:
        """Publish the receipt for all that landed."""
        with self._lock:
            self._run += 1
            settled = {
                str(stream): {epoch: list(ranges.spans) for epoch, ranges in epochs.items()}
                for stream, epochs in self._settled.items()
            }
            body = encode_receipt(Receipt(self._run, settled))
        self._client.publish(f"catchment/down/{device}/receipts", body, qos=1, retain=True)

    def landed_seqs(self, stream: str) -> dict[int, Ranges]:
        """Epoch -> seqs that arrived."""
        with self._lock:
            found: dict[int, Ranges] = defaultdict(Ranges)
            for head, _ in self.landed:
                if head.stream == stream and head.span is not None:
                    found[head.span.epoch] = found[head.span.epoch].union([(head.span.first_seq, head.span.end_seq)])
            return dict(found)

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(topic, 1) for topic in self._topics.bridge_filters()])

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        address, body = self._topics.parse(message.topic), bytes(message.payload)
        properties = list(getattr(message.properties, "UserProperty", ()))
        if address.kind is Kind.UP and address.stream is not None:
            head = read_head(address.device, address.stream, getattr(message.properties, "ContentType", None), properties)
            if head.span is None:  # JSON that its device did not number: a real bridge would
                self.unnumbered.append((head, body))
                return
            with self._lock:
                self.landed.append((head, body))
                epochs = self._settled[address.stream]
                epochs[str(head.span.epoch)] = epochs[str(head.span.epoch)].union([(head.span.first_seq, head.span.end_seq)])
            if self.is_settling:
                self.settle_all(address.device)
        elif address.kind is Kind.PARTS and address.digest is not None:
            self._on_part(address.device, read_part_head(address.digest, len(body), properties), body)
        elif address.kind is Kind.REPORTED:
            self._on_reported(decode_reported(body))

    def _on_reported(self, report: Reported) -> None:
        """Dropped ranges are settled as dropped."""
        with self._lock:
            self.reports.append(report)
            for epoch in report.epochs:
                known = self._settled[epoch.stream]
                dropped = [(gone.low, gone.high) for gone in epoch.dropped]
                known[str(epoch.epoch)] = known[str(epoch.epoch)].union(dropped)
        if self.is_settling:
            self.settle_all(report.device)

    def _on_part(self, device: str, head: PartHead, body: bytes) -> None:
        with self._lock:
            if self.max_parts is not None and len(self.parts) >= self.max_parts:
                return
            self.parts.append(head)
            whole = self._pieces.setdefault(head.digest, bytearray(head.total))
            whole[head.offset : head.offset + head.length] = body
            if head.length:
                self._have[head.digest] = self._have[head.digest].union([(head.offset, head.offset + head.length)])
            have = self._have[head.digest]
            is_whole = have.covers(0, head.total)
            if is_whole:
                assert hashlib.sha256(whole).hexdigest() == head.digest
                self.objects[head.digest] = bytes(whole)
        state = ObjectState(str(head.digest), head.total, list(have.spans), settled=is_whole)
        self._client.publish(f"catchment/down/{device}/objects", encode_object_state(state), qos=1)
