"""Where the agent's log goes: standard error, which may be a file on a full disk, or a pipe that nobody reads any more.

Neither may end a thread: an agent that cannot say that the disk is full must drain all the same.
"""

import io
import os

_DESCRIPTOR = 2


class TolerantStderr(io.TextIOBase):
    """Writes whole lines, unbuffered. What was not taken is counted, and told with the next line that is.

    Args:
        descriptor: of the open file.
    """

    def __init__(self, descriptor: int = _DESCRIPTOR) -> None:
        self._descriptor = descriptor
        self.lost = 0

    def write(self, text: str) -> int:
        """Write a line; never raises."""
        message = f"level=warning event=log_lines_lost lines={self.lost}\n{text}" if self.lost else text
        try:
            os.write(self._descriptor, message.encode(errors="replace"))
        except OSError:
            self.lost += 1
        else:
            self.lost = 0
        return len(text)
