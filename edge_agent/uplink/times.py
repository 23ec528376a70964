"""Waiting times of the uplink that no operator sets. They stand alone because four modules wait by them; tests shorten them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UplinkTimes:
    """Times in seconds.

    Attributes:
        first_reconnect_s: wait before the first attempt to connect again; it doubles.
        steady_s: how long a connection has stood, times a random 0.5 to 1.5, before a suspect envelope is sent alone.
        first_pause_s: how long a stream without a right waits at first; it doubles.
        fresh_for_s: what was not sent by then is old, and shares the link with what is newer.
        careful_turn_s: how often the next envelope is looked for while one at a time goes.
    """

    first_reconnect_s: float = 0.5
    # Links also break right after they are made.
    steady_s: float = 1.0
    first_pause_s: float = 60.0
    fresh_for_s: float = 60.0
    careful_turn_s: float = 0.1
