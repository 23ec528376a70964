"""A rollback of a simulated fleet: from the command to the last device that checked its order, and to the last one that reported.

The devices are one MQTT client that hears all their orders, checks each signature as a device does, and reports what a device
reports that has switched back to the version in its other slot. The switching itself costs nothing here.

Run: python bench/rollout_rollback.py [--smoke] [--devices 1000]
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.documents.signature import is_signed
from pipelines.config import load_core_config
from pipelines.director import director_folder, first_director
from pipelines.rollout.keys import KeyFolder, KeyPlan, keys_folder, models_folder
from pipelines.rollout.repository import ModelRepository
from pipelines.rollout.rollouts import Rollout, RolloutStore
from schemas.ids import DeviceId
from schemas.reported import ModelReport, Reported, encode_reported
from schemas.rollout import DesiredModels
from schemas.signed_document import DocumentKind, decode_body, decode_document, decode_message, signing_bytes
from schemas.topics import Topics
from tests.fakes import model_repository as fake
from tests.plant.broker import loopback_broker

DEADLINE_S = 30.0


class Fleet:
    """All devices, as one client."""

    def __init__(self, port: int, names: list[str], public_key: str) -> None:
        self._topics, self._key = Topics(), public_key
        self.checked: dict[str, float] = {}
        self.reported: dict[str, float] = {}
        self._names = names
        self._mids: dict[int, str] = {}
        self._ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "fleet", protocol=mqtt.MQTTv5)
        self.client.max_inflight_messages_set(1_000)
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.client.subscribe(self._topics.desired(DeviceId("x")).replace("/x/", "/+/"), qos=1)
        assert self._ready.wait(10)

    def report(self, device: str, version: int) -> None:
        """What a device reports when it runs a version."""
        body = encode_reported(Reported(device, 0, "bench", models=(ModelReport("bright", version, "active"),)))
        self._mids[self.client.publish(self._topics.reported(DeviceId(device)), body, qos=1, retain=True).mid] = device

    def _on_message(self, _client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
        device = message.topic.split("/")[-2]
        signed = decode_message(bytes(message.payload))
        document = decode_document(signed.document, DocumentKind.DESIRED, DesiredModels)
        (signature,) = signed.signatures
        assert is_signed(self._key, signature.signature, signing_bytes(document.kind, signed.document))
        (wanted,) = decode_body(document, DesiredModels).models
        if wanted.version == 1:
            self.checked[device] = time.monotonic()
            self.report(device, 1)

    def _on_publish(self, _client: object, _userdata: object, mid: int, *_: object) -> None:
        if (device := self._mids.get(mid)) in self.checked:
            self.reported[str(device)] = time.monotonic()


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few devices")
    parser.add_argument("--devices", type=int, default=1_000)
    given = parser.parse_args()
    count = 20 if given.smoke else given.devices
    with tempfile.TemporaryDirectory() as place, loopback_broker(Path(place) / "broker") as broker:
        core_file = Path(place) / "core.toml"
        core_file.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
        config = load_core_config(core_file)
        repository = ModelRepository(models_folder(config), KeyFolder(keys_folder(config)), fake.Clock())
        repository.init(KeyPlan())
        targets = [repository.publish("bright", fake.tiny_model(bias), fake.IMAGE).target for bias in (0.0, 0.1)]
        key = first_director(director_folder(config)).public_keys[0]
        RolloutStore(models_folder(config) / "rollouts").save(Rollout("bright-2", "bright", 2, targets[1], "all", 1))
        names = [f"device-{number}" for number in range(count)]
        fleet = Fleet(broker.port, names, key)
        for name in names:
            fleet.report(name, 2)
        time.sleep(2)
        began = time.monotonic()
        words = [sys.executable, "-m", "pipelines", "rollout", "rollback", "bright-2", "-c", str(core_file)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        ended = time.monotonic()
        while len(fleet.reported) < count and time.monotonic() - began < DEADLINE_S:
            time.sleep(0.01)
        print(done.stdout.strip(), done.stderr.strip())
        print(
            f"{len(fleet.reported)} of {count} devices back; command {ended - began:.1f} s; "
            f"last order checked after {max(fleet.checked.values()) - began:.1f} s, "
            f"last report acknowledged after {max(fleet.reported.values()) - began:.1f} s"
        )
        fleet.client.disconnect()


if __name__ == "__main__":
    main()
