"""From frames to the samples of one batch: signals by the channel's own databases, or the frames as they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import can

from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.can.decoder import UNKNOWN, SignalDecoder, SignalRows, group_number, source_address
from edge_agent.sources.can.source import CanOptions, wants_frames
from schemas.contract import Contract
from schemas.source_names import match_columns


@dataclass(slots=True)
class FrameRows:
    """Frames gathered for one batch, undecoded."""

    contract: Contract
    times_us: list[int] = field(default_factory=list)
    frames: list[tuple[str, can.Message]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, position: bytes | None, *, agent_clock: bool) -> SampleBatch | None:
        """One batch of all; None of nothing."""
        if not self.frames:
            return None
        ids = [(frame.arbitration_id, frame.is_extended_id) for _, frame in self.frames]
        columns: dict[str, Sequence[Scalar]] = {
            "channel": [channel for channel, _ in self.frames],
            "can_id": [id_ for id_, _ in ids],
            "is_extended": [extended for _, extended in ids],
            "group_number": [group_number(id_) if extended else None for id_, extended in ids],
            "source_address": [source_address(id_) if extended else None for id_, extended in ids],
            "is_fd": [frame.is_fd for _, frame in self.frames],
            "is_remote": [frame.is_remote_frame for _, frame in self.frames],
            "data": [bytes(frame.data) for _, frame in self.frames],
        }
        matched = match_columns(columns, self.contract.columns, {})
        known = {column.name: columns[name] for name, column in matched.items()}
        return SampleBatch(self.times_us, known, None, position, agent_clock)


class FrameSampler:
    """Turns frames into rows.

    Args:
        options: databases, for all channels and for each.
        contract: of signals (`can_signal`), or of frames as they are (`can_frame`).
        rejects: where frames are counted that give nothing.

    Attributes:
        matched: frames that gave rows.

    Raises:
        ConfigError: a database cannot be read.
    """

    def __init__(self, options: CanOptions, contract: Contract, rejects: Rejects) -> None:
        self._contract = contract
        self._rejects = rejects
        self._is_raw = wants_frames(contract)
        self._decoder = SignalDecoder(options.dbc, options.signals, options.j1939) if options.dbc else None
        self._by_channel = {
            channel: SignalDecoder(files, options.signals, options.j1939) for channel, files in options.dbc_by_channel.items()
        }
        self.matched = 0
        self.rows: SignalRows | FrameRows = self._new_rows()

    def begin(self) -> None:
        """Start the next batch."""
        self.rows = self._new_rows()

    def take(self, time_us: int, frame: can.Message, channel: str) -> None:
        """One frame."""
        if isinstance(self.rows, FrameRows):
            if frame.is_error_frame:
                self._rejects.count("row: error frame")
                return
            self.rows.times_us.append(time_us)
            self.rows.frames.append((channel, frame))
            self.matched += 1
            return
        decoder = self._by_channel.get(channel, self._decoder)
        if decoder is None:
            self._rejects.count(UNKNOWN)
            return
        signals = decoder.decode(frame, channel, self._rejects)
        self.matched += bool(signals)
        self.rows.add(time_us, signals)

    def filters(self, channel: str) -> list[tuple[int, int, bool]]:
        """What to ask the kernel for: id, mask, whether extended; empty where every frame is wanted."""
        decoder = self._by_channel.get(channel, self._decoder)
        return [] if self._is_raw or decoder is None else decoder.filters

    def _new_rows(self) -> SignalRows | FrameRows:
        return FrameRows(self._contract) if self._is_raw else SignalRows(self._contract)
