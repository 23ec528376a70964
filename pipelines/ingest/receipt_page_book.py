"""Which devices' receipts may have further pages retained on the broker: without a note nobody would ever empty them."""

import msgspec
import structlog

from pipelines.lake.lake import Lake
from pipelines.lake.layout import receipt_pages_path

log = structlog.get_logger(__name__)


class PageBook:
    """How many further pages each device's receipt may have; noted before they are published. Used by one thread.

    Args:
        lake: the lake.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._pages: dict[str, int] | None = None

    def pages(self, device: str) -> int:
        """How many further pages may be retained.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        if self._pages is None:
            self._pages = self._read()
        return self._pages.get(device, 0)

    def note(self, device: str, pages: int) -> None:
        """So many further pages may be retained from now on; durable if that is another number than before.

        Raises:
            RetryLaterError: the storage is unavailable.
            OSError: the disk refused.
        """
        if self.pages(device) == pages:
            return
        assert self._pages is not None, "read a line above"
        after = {**self._pages, device: pages}
        if not pages:
            del after[device]
        path = receipt_pages_path(self._lake.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lake.put(path, msgspec.json.encode(after))
        self._pages = after

    def _read(self) -> dict[str, int]:
        path = receipt_pages_path(self._lake.root)
        try:
            return msgspec.json.decode(self._lake.read(path), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            # What is forgotten are pages that stay true: they cost the broker room, and no sample.
            log.warning("receipt_pages_unreadable", path=str(path), error=str(error))
            return {}
