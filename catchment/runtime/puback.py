"""A paho client that bears a PUBACK whose reason code MQTT 5 does not list for it."""

from typing import Any, Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

# In a PUBACK: where its reason code stands, which ones MQTT 5 lists, and the one of these that says nothing more.
_CODE_AT = 2
_LISTED = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})
_UNSPECIFIED = 0x80


class PubackClient(mqtt.Client):
    """Keeps the connection when a message is refused with an unlisted code, and tells that code.

    Mosquitto answers a message above its `message_size_limit` with 0x95, which MQTT 5 gives to other packets alone. Paho would
    break the connection, and the same message would break the next one, permanently.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unlisted: dict[int, int] = {}

    def take_code(self, mid: int, listed: int) -> int:
        """The reason code the broker answered a message with, where paho tells a listed one."""
        return self._unlisted.pop(mid, listed)

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        body = self._in_packet["packet"]
        if cmd == "PUBACK" and len(body) > _CODE_AT and body[_CODE_AT] not in _LISTED:
            self._unlisted[int.from_bytes(body[:_CODE_AT])] = body[_CODE_AT]
            body = bytearray(body)
            body[_CODE_AT] = _UNSPECIFIED
            self._in_packet["packet"] = body
        return super()._handle_pubackcomp(cmd)
