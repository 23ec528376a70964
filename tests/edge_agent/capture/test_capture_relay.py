"""Storing beside encoding changes nothing but the time it takes; and a filled form is what nanoarrow would have written."""

import io
import os
import threading
from array import array
from concurrent.futures import Future
from pathlib import Path

import nanoarrow as na
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanoarrow.ipc import StreamWriter

from catchment.runtime.clock import SystemClock
from edge_agent.capture.ipc_form import Filled, Form
from edge_agent.capture.relay import MIN_BODY_BYTES, Relay
from edge_agent.errors import SpoolError
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.envelope import Span
from schemas.ids import StreamName

STREAM = StreamName("frames")


def append(number: int, size_bytes: int = MIN_BODY_BYTES) -> Append:
    body = number.to_bytes(4) + os.urandom(size_bytes)
    return Append(STREAM, (NewEnvelope(1, body, "1.0.0"),), source="camera", position=b"%d" % number)


class Gate:
    """A spool that takes an append only when it is told to."""

    def __init__(self) -> None:
        self.taken: list[Append] = []
        self.may = threading.Semaphore(0)
        self.error: Exception | None = None

    def append(self, append: Append) -> "Future[Span]":
        self.may.acquire()
        if self.error is not None:
            raise self.error
        self.taken.append(append)
        durable: Future[Span] = Future()
        durable.set_result(Span(1, len(self.taken), 1))
        return durable


def test_frames_become_durable_in_their_order_and_the_last_position_holds(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=1, clock=SystemClock())
    relay = Relay(spool, "camera", cores=2)
    appends = [append(number) for number in range(40)]
    pending = [relay.append(one) for one in (*appends, append(40, 100))]
    assert [one.result().first_seq for one in pending] == list(range(41))
    assert all(one.done() and one.exception() is None for one in pending)
    relay.close()
    assert spool.position("camera") == b"40"
    sent = spool.next_unsent(1 << 26)
    assert [envelope.body for envelope in sent[:40]] == [one.envelopes[0].body for one in appends]
    spool.close()


def test_the_next_one_but_one_waits_so_that_no_more_than_two_are_in_memory() -> None:
    gate = Gate()
    relay = Relay(gate, "camera", cores=2)  # type: ignore[arg-type]  # all that is asked of it
    first, second = append(1), append(2)
    pending = [relay.append(first)]
    assert not pending[0].done()
    waiting = threading.Thread(target=lambda: pending.append(relay.append(second)))
    waiting.start()
    assert gate.taken == []
    assert len(pending) == 1
    gate.may.release()
    waiting.join()
    assert gate.taken == [first]
    gate.may.release()
    assert [one.result().first_seq for one in pending] == [1, 2]
    relay.close()


@pytest.mark.parametrize(("cores", "size_bytes"), [(1, MIN_BODY_BYTES), (4, MIN_BODY_BYTES - 10)])
def test_with_one_core_or_small_bodies_the_sources_own_thread_hands_in(cores: int, size_bytes: int) -> None:
    gate = Gate()
    gate.may.release()
    before = threading.active_count()
    relay = Relay(gate, "camera", cores=cores)  # type: ignore[arg-type]  # as above
    assert relay.append(append(1, size_bytes)).done()
    assert threading.active_count() == before
    relay.close()


def test_a_refusal_of_the_spool_is_in_the_result() -> None:
    gate = Gate()
    gate.error = SpoolError("broken")
    relay = Relay(gate, "camera", cores=2)  # type: ignore[arg-type]  # as above
    gate.may.release(2)
    pending = [relay.append(append(1)), relay.append(append(2))]
    for one in pending:
        assert str(one.exception()) == "broken"
        assert one.done()
        with pytest.raises(SpoolError, match="broken"):
            one.result()
    relay.close()


@given(st.integers(1, 50), st.binary(max_size=100), st.booleans())
def test_a_filled_form_is_what_nanoarrow_writes_byte_by_byte(rows: int, text: bytes, with_nulls: bool) -> None:
    validity = bytes((rows + 7) // 8) if with_nulls else b""
    nulls = rows if with_nulls else 0
    fields = {
        "time": na.c_schema(na.timestamp("us", "UTC")),
        "small": na.c_schema(na.int32()),
        "text": na.c_schema(na.string()),
        "flag": na.c_schema(na.bool_()),
        "nothing": na.c_schema(na.null()),
        "payload": na.c_schema(na.binary()),
    }
    offsets = array("i", [0] + [len(text)] * rows)
    columns = [
        Filled(0, (b"", array("q", range(rows)))),
        Filled(nulls, (validity, array("i", range(rows)))),
        Filled(nulls, (validity, offsets, text)),
        Filled(0, (b"", bytes((rows + 7) // 8))),
        Filled(rows, ()),
        Filled(0, (b"", offsets, text)),
    ]
    children = [
        na.c_array_from_buffers(
            schema,
            rows,
            [buffer or None for buffer in column.buffers[:1]] + list(column.buffers[1:]),
            null_count=column.null_count,
        )
        for schema, column in zip(fields.values(), columns, strict=True)
    ]
    record = na.c_array_from_buffers(na.c_schema(na.struct(fields)), rows, [None], children=children, null_count=0)
    out = io.BytesIO()
    StreamWriter.from_writable(out).serialize_stream(record)
    assert Form(fields).fill(rows, columns) == out.getvalue()
