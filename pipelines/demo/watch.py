"""What the demo knows of its devices and its lake: the reports that devices publish, and counts of the Delta tables."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
import structlog
from deltalake import DeltaTable

from catchment.runtime.mqtt_link import make_client, open_connection
from pipelines.demo.view import DeviceLine, Snapshot, StreamLine
from schemas.errors import SchemaError
from schemas.reported import ModelReport, Reported, decode_reported
from schemas.topics import DEFAULT_NAMESPACE

log = structlog.get_logger(__name__)


class Watch:
    """Listens to the devices' reports; asks the lake when asked."""

    def __init__(self, host: str, port: int, lake: Path, streams: Sequence[str]) -> None:
        self._host, self._port = host, port
        self._lake = lake
        self._streams = tuple(streams)
        self._lock = threading.Lock()
        self._reports: dict[str, Reported] = {}
        self._client = make_client("demo-watch", mqtt.Client, reconnects=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        """Connect."""
        open_connection(self._client, self._host, self._port)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(f"{DEFAULT_NAMESPACE}/reported/+", qos=1)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            report = decode_reported(bytes(message.payload))
        except SchemaError as error:
            log.warning("report_unreadable", topic=message.topic, error=str(error))
            return
        with self._lock:
            self._reports[report.device] = report

    def snapshot(self, *, network_is_up: bool = True) -> Snapshot:
        """What is known now."""
        with self._lock:
            reports = sorted(self._reports.values(), key=lambda report: report.device)
        devices = tuple(
            DeviceLine(report.device, book.stream, book.captured, book.settled, book.spooled, sum(book.dropped.values()))
            for report in reports
            for book in report.books
        )
        return Snapshot(devices, tuple(self._count(stream) for stream in self._streams), network_is_up)

    def models(self) -> dict[str, ModelReport]:
        """Device -> the model it says it runs, of those that run one."""
        with self._lock:
            return {
                device: model for device, report in self._reports.items() for model in report.models if model.state == "active"
            }

    def _count(self, stream: str) -> StreamLine:
        folder = self._lake / "streams" / stream
        if not (folder / "_delta_log").is_dir():
            return StreamLine(stream, 0, 0)
        table = DeltaTable(folder)
        actions = table.get_add_actions(flatten=True)
        names = actions.schema.names
        committed = sum(actions.column("num_records").to_pylist()) if len(actions.column("path")) else 0
        predicted = 0
        if "null_count.predicted_score" in names:
            nulls = actions.column("null_count.predicted_score").to_pylist()
            predicted = committed - sum(count or 0 for count in nulls)
        return StreamLine(stream, committed, predicted)
