"""Sentences out of a receiver's bytes: messages in binary (UBX, RTCM 3) may stand between them, and noise anywhere. Pure.

A binary message is skipped as a whole once its own checksum is right, so that nothing within it is taken for a sentence.
"""

import re

from edge_agent.sources.rejects import Rejects

UBX = "report: binary message (UBX)"
RTCM = "report: binary message (RTCM)"
NOISE = "row: no NMEA sentence"
_MAX_SENTENCE_BYTES = 2_048
_MAX_UBX_BYTES = 8_192
_UBX_FRAME_BYTES, _RTCM_FRAME_BYTES = 8, 6
_UBX_SYNC, _RTCM_SYNC = b"\xb5b", b"\xd3"
# What a sentence, its tag block or a binary message begins with, or what ends a line of noise.
_BEGIN = re.compile(rb"[$!\\\xb5\xd3\n]")
_END = re.compile(rb"[\r\n]")
# The last beginning within a line, with the tag blocks that stand right before it.
_SENTENCE = re.compile(rb"(?:\\[^\\]*\\)*[$!][^$!]*\Z")
_CRC24Q = 0x1864CFB


class SentenceStream:
    """Takes bytes as they come, gives sentences.

    Args:
        rejects: where noise and binary messages are counted.
    """

    def __init__(self, rejects: Rejects) -> None:
        self._rejects = rejects
        self._bytes = bytearray()
        self._is_noise = False

    def add(self, piece: bytes) -> None:
        """Take more bytes."""
        self._bytes += piece

    def take(self, most: int) -> list[str]:
        """At most so many sentences, each with its tag block, without the line's end."""
        found: list[str] = []
        while self._bytes and len(found) < most:
            byte = self._bytes[0]
            if byte in (_UBX_SYNC[0], _RTCM_SYNC[0]):
                count = self._binary()
                if count == 0:
                    break  # the rest of it is still to come
                if count > 0:
                    del self._bytes[:count]
                    continue
            elif byte in b"$!\\":
                end = _END.search(self._bytes)
                if end is None and len(self._bytes) < _MAX_SENTENCE_BYTES:
                    break
                if end is not None and end.start() < _MAX_SENTENCE_BYTES:
                    found += self._sentence(bytes(self._bytes[: end.start()]))
                    del self._bytes[: end.start()]
                    continue
            self._skip(1 if byte in b"$!\\\xb5\xd3" else 0)
        return found

    def _sentence(self, line: bytes) -> list[str]:
        """The sentence in a line that begins as one; where another begins within it, that one, and the first was torn."""
        whole = _SENTENCE.search(line)
        if whole is None or whole.start() > 0:
            self._rejects.count(NOISE, line[:80])
        self._is_noise = False
        return [] if whole is None else [whole.group().decode("utf-8", errors="replace")]

    def _skip(self, least: int) -> None:
        """Leave out what begins nothing, at least so many bytes; each run of noise counts once."""
        if self._bytes[0] in b"\r\n":
            self._is_noise = False
            del self._bytes[: len(self._bytes) - len(self._bytes.lstrip(b"\r\n\0"))]
            return
        found = _BEGIN.search(self._bytes, least)
        end = found.start() if found else len(self._bytes)
        if not self._is_noise and self._bytes[:end].strip(b"\0 "):
            self._rejects.count(NOISE, bytes(self._bytes[: min(end, 80)]))
            self._is_noise = True
        del self._bytes[:end]

    def _binary(self) -> int:
        """The length of the binary message that begins here; 0: not all of it is here; below 0: there is none."""
        if self._bytes[0] == _UBX_SYNC[0]:
            return self._ubx()
        return self._rtcm()

    def _ubx(self) -> int:
        data = self._bytes
        if not _UBX_SYNC.startswith(bytes(data[:2])) and bytes(data[:2]) != _UBX_SYNC:
            return -1
        if len(data) < 6:
            return 0
        count = int.from_bytes(data[4:6], "little") + _UBX_FRAME_BYTES
        if count > _MAX_UBX_BYTES:
            return -1
        if len(data) < count:
            return 0
        first = second = 0
        for byte in data[2 : count - 2]:
            first = (first + byte) & 0xFF
            second = (second + first) & 0xFF
        return self._counted(UBX, count) if bytes(data[count - 2 : count]) == bytes((first, second)) else -1

    def _rtcm(self) -> int:
        data = self._bytes
        if len(data) < 3:
            return 0 if len(data) < 2 or not data[1] & 0xFC else -1
        count = int.from_bytes(data[1:3], "big") + _RTCM_FRAME_BYTES
        if data[1] & 0xFC:
            return -1
        if len(data) < count:
            return 0
        crc = 0
        for byte in data[: count - 3]:
            crc ^= byte << 16
            for _ in range(8):
                crc <<= 1
                if crc & 0x1000000:
                    crc ^= _CRC24Q
        return self._counted(RTCM, count) if data[count - 3 : count] == crc.to_bytes(3, "big") else -1

    def _counted(self, reason: str, count: int) -> int:
        self._rejects.count(reason)
        return count
