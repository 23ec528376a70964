"""Runs of near-duplicates: of a camera that stands still, the pictures after the first tell nothing new."""

from collections.abc import Sequence

NEAR_BITS = 6


def bursts(
    devices: Sequence[str | None],
    epochs: Sequence[int],
    seqs: Sequence[int],
    hashes: Sequence[str | None],
    near_bits: int = NEAR_BITS,
) -> tuple[list[str | None], list[int | None]]:
    """For each row the burst it is of, `epoch-seq` of its first, and its place in it from 0; None without a hash.

    A row belongs to the burst before it in its device's order if its hash differs from that of the burst's first in at most
    `near_bits` of 64 bits: compared with the first and not with its neighbour, so that a slow change ends a burst.
    """
    order = sorted(range(len(hashes)), key=lambda row: (devices[row] or "", epochs[row], seqs[row]))
    names: list[str | None] = [None] * len(hashes)
    places: list[int | None] = [None] * len(hashes)
    device, first, name, place = "", 0, "", 0
    for row in order:
        digest = hashes[row]
        if digest is None:
            continue
        bits = int(digest, 16)
        if name and devices[row] == device and (bits ^ first).bit_count() <= near_bits:
            place += 1
        else:
            device, first, name, place = devices[row] or "", bits, f"{epochs[row]}-{seqs[row]}", 0
        names[row], places[row] = name, place
    return names, places
