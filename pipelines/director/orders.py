"""Desired state as signed documents: one for each device, each addressed to it alone."""

from pathlib import Path
from typing import Self

from catchment.runtime.clock import Clock
from pipelines.config import CoreConfig
from pipelines.director.counters import counters_folder, director_folder, next_counter
from pipelines.director.keys import DocumentSigner, load_director
from schemas.rollout import Desired, DesiredModels, encode_desired, encode_signed_desired
from schemas.signed_document import Addressees, Document, DocumentKind, encode_body

_HOUR_MS = 3_600_000


class DesiredOrders:
    """Makes the messages for `down/<device>/desired`. Without a director key they are unsigned, as in the release before.

    Args:
        signer: the director; None: there is no key.
        counters: the folder of the counters.
        clock: when a document is issued.
        lifetime_h: how long after that a device may take it.
    """

    def __init__(self, signer: DocumentSigner | None, counters: Path, clock: Clock, lifetime_h: float) -> None:
        self._signer = signer
        self._counters = counters
        self._clock = clock
        self._lifetime_ms = round(lifetime_h * _HOUR_MS)
        self._counter: int | None = None

    @classmethod
    def open(cls, config: CoreConfig, clock: Clock) -> Self:
        """With the keys that are there now.

        Raises:
            RefusedError: a key is unreadable, or others than its owner may read it.
        """
        return cls(load_director(director_folder(config)), counters_folder(config), clock, config.director.lifetime_h)

    @property
    def public_keys(self) -> tuple[str, ...]:
        """The keys that sign; none without a director."""
        return () if self._signer is None else self._signer.public_keys

    @property
    def renew_after_ms(self) -> int:
        """After so long a message is signed again, so that a device that was away finds one that has not expired."""
        return self._lifetime_ms // 2

    def take_counter(self) -> None:
        """Take the counter of the messages to come, before what they order is read. Unsigned ones have none.

        Raises:
            CorruptLakeError: the counter cannot be read.
            OSError: the counter cannot be kept.
        """
        if self._signer is not None:
            self._counter = next_counter(self._counters, DocumentKind.DESIRED, self._clock.now_ms())

    @property
    def expiry_s(self) -> int | None:
        """After so long the broker need not keep a message any more; None: it does not expire."""
        return None if self._signer is None else max(1, self._lifetime_ms // 1000)

    def message(self, device: str, desired: Desired | None) -> bytes:
        """What a device is to run; None: no model. Unsigned, that is an empty message.

        All messages of one object share a counter: they are for different devices.

        Raises:
            CorruptLakeError: the counter cannot be read.
            OSError: the counter cannot be kept.
        """
        if self._signer is None:
            return b"" if desired is None else encode_desired(desired)
        now_ms = self._clock.now_ms()
        if self._counter is None:
            self._counter = next_counter(self._counters, DocumentKind.DESIRED, now_ms)
        models = DesiredModels(() if desired is None else (desired,))
        document = Document(
            kind=DocumentKind.DESIRED.value,
            counter=self._counter,
            issued_ms=now_ms,
            to=Addressees(devices=(str(device),)),
            body=encode_body(models),
            expires_ms=now_ms + self._lifetime_ms,
        )
        return encode_signed_desired(self._signer.sign(document), models)
