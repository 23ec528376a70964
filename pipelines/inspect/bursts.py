"""Runs of near-duplicates: of a camera that stands still, the pictures after the first tell nothing new."""

from collections.abc import Sequence

NEAR_BITS = 6
# A part that comes by a minute later is another part, however alike the pictures are.
NEAR_S = 10.0
_US = 1_000_000


def bursts(
    devices: Sequence[str | None],
    epochs: Sequence[int],
    seqs: Sequence[int],
    hashes: Sequence[str | None],
    times_us: Sequence[int | None] | None = None,
    near_bits: int = NEAR_BITS,
    near_s: float = NEAR_S,
) -> tuple[list[str | None], list[int | None]]:
    """For each row the burst it is of, `epoch-seq` of its first, and its place in it from 0; None without a hash.

    A row belongs to the burst before it in its device's order if its hash differs from that of the burst's first in at most
    `near_bits` of 64 bits: compared with the first and not with its neighbour, so that a slow change ends a burst. It must also
    have been captured within `near_s` of the burst's last, where both times are known.
    """
    times = times_us or [None] * len(hashes)
    order = sorted(range(len(hashes)), key=lambda row: (devices[row] or "", epochs[row], seqs[row]))
    names: list[str | None] = [None] * len(hashes)
    places: list[int | None] = [None] * len(hashes)
    device, first, name, place = "", 0, "", 0
    last_us: int | None = None
    for row in order:
        digest = hashes[row]
        if digest is None:
            continue
        bits = int(digest, 16)
        time_us = times[row]
        is_near = last_us is None or time_us is None or abs(time_us - last_us) <= near_s * _US
        if name and is_near and devices[row] == device and (bits ^ first).bit_count() <= near_bits:
            place += 1
        else:
            device, first, name, place = devices[row] or "", bits, f"{epochs[row]}-{seqs[row]}", 0
        last_us = time_us
        names[row], places[row] = name, place
    return names, places
