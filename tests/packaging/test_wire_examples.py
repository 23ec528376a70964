"""The commands of docs/wire.md are run as they stand, and what arrives is what the page says."""

import queue
import re
import shutil
import subprocess
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from pipelines.contracts.json_rows import rows_from_json
from schemas.contract import builtin_contract
from schemas.envelope import JSON, Span, read_head
from schemas.topics import Topics
from tests.plant.broker import RunningBroker
from tests.plant.present import present


def test_the_publish_commands_of_the_page_send_good_samples(broker: RunningBroker, repository_root: Path) -> None:
    if shutil.which("mosquitto_pub") is None:
        pytest.skip("no mosquitto_pub; install it: apt-get install -y --no-install-recommends mosquitto-clients")
    page = (repository_root / "docs/wire.md").read_text()
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "mosquitto_pub" in text]
    heard: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
    subscribed: queue.Queue[bool] = queue.Queue()
    reader = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    reader.on_message = lambda _client, _data, message: heard.put(message)
    reader.on_subscribe = lambda *_: subscribed.put(True)
    reader.on_connect = lambda client, *_: client.subscribe("catchment/up/+/+", qos=1)
    reader.connect(broker.host, broker.port)
    reader.loop_start()
    try:
        subscribed.get(timeout=10)
        script = block.replace("-h 127.0.0.1", f"-h {broker.host} -p {broker.port}")
        subprocess.run(["sh", "-ec", script], check=True, timeout=20)
        messages = [heard.get(timeout=10), heard.get(timeout=10)]
    finally:
        reader.disconnect()
        reader.loop_stop()
    spans = []
    for message in messages:
        address = Topics().parse(message.topic)
        properties = getattr(message.properties, "UserProperty", [])
        stream = present(address.stream)
        head = read_head(address.device, stream, getattr(message.properties, "ContentType", None), properties)
        rows = rows_from_json(bytes(message.payload), builtin_contract(stream), received_us=0)
        assert (head.content_type, rows.count, rows.rejected) == (JSON, 1, ())
        spans.append(head.span)
    assert spans == [Span(1, 0, 1), None]
