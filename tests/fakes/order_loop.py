"""Follows signed orders until it is killed, and prints each counter when it would act: `order_loop.py STATE KEY`."""

import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.fakes.director import FakeDirector, OrderTaker


def main() -> None:
    state, key = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
    director = FakeDirector()
    director.key = Ed25519PrivateKey.from_private_bytes(key)
    director.public_key = director.key.public_key().public_bytes_raw().hex()
    device = OrderTaker(state, director.public_key)
    counter = device.counter.seen.counter
    while True:
        counter += 1
        if device.take(director.order(counter)) is not None:
            sys.stdout.write(f"{counter}\n")
            sys.stdout.flush()


main()
