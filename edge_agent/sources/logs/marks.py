"""Marks by which a log is known again: by what it contains, never by its name or inode. Pure.

A mark says how a file begins, and what stands just before a place in it. A copy, a packed copy and a renamed file hold the mark
of what they were made of; a log that was emptied and written again does not.
"""

import zlib

import msgspec

HEAD_BYTES = 1_024
TAIL_BYTES = 1_024
# So much of a file's beginning is compared: a wide header alone can be a kilobyte.
MARKED_BYTES = 8_192
_FIRST_PRINT_BYTES = 64
# So many bytes, and their CRC-32.
Sum = tuple[int, int]


def sum_of(content: bytes) -> Sum:
    """The length and CRC-32 of some bytes."""
    return len(content), zlib.crc32(content)


def head_of(content: bytes) -> Sum:
    """The sum of a file's first kilobyte."""
    return sum_of(content[:HEAD_BYTES])


def prints_of(content: bytes) -> tuple[int, ...]:
    """The CRC-32 of the first 64, 128, 256 … 8,192 bytes, as far as there are so many."""
    prints: list[int] = []
    size = _FIRST_PRINT_BYTES
    while size <= min(len(content), MARKED_BYTES):
        prints.append(zlib.crc32(content[:size]))
        size *= 2
    return tuple(prints)


class Mark(msgspec.Struct, frozen=True):
    """A place in a log.

    Attributes:
        head: sum of the first kilobyte of content, as far as it lies before the place.
        size: offset of the place, in unpacked bytes.
        tail: sum of the bytes just before the place; (0, 0): unknown, as earlier agents did not keep it.
        prints: see `prints_of`, as far as the bytes lie before the place.
    """

    head: Sum
    size: int
    tail: Sum = (0, 0)
    prints: tuple[int, ...] = ()

    def fits(self, content: bytes) -> bool:
        """Whether a file that begins with this content begins as the marked one."""
        count = self.head[0]
        return (
            len(content) >= count
            and sum_of(content[:count]) == self.head
            and prints_of(content)[: len(self.prints)] == self.prints
        )

    def may_be_longer_than(self, content: bytes, size: int) -> bool:
        """Whether a file of this size could be a copy of the marked one that ends before the place."""
        prints = prints_of(content)
        return size < self.size and bool(prints) and self.prints[: len(prints)] == prints


class DoneFile(msgspec.Struct, frozen=True, array_like=True):
    """A file read to its end: how it begins, when it, or its packed copy, was last written, and where it ended.

    `size`: -1 where only the beginning was looked at.
    """

    head: Sum
    modified_ns: int
    size: int = -1
    tail: Sum = (0, 0)
    prints: tuple[int, ...] = ()

    @property
    def mark(self) -> Mark:
        """Its end."""
        return Mark(self.head, self.size, self.tail, self.prints)


class LogPosition(msgspec.Struct, frozen=True):
    """The position of a followed log.

    Attributes:
        head, offset, tail, prints: mark of the place in the file that is being read; head (0, 0): nothing of it was read yet.
        header_offset: where the header in force begins; -1: in an earlier file.
        done: the last files read to their end.
        since_ns: files not written since were read before those, or are not wanted.
        inode: of the log when it was last read where it is written; it tells a log that was cut from one that was renamed.
        form: how the rows are written: zeek, jsonl, csv or plain.
        header: the text of the header in force.
        lead: the beginning of a line whose end went into the next file.
    """

    head: Sum = (0, 0)
    offset: int = 0
    header_offset: int = 0
    done: tuple[DoneFile, ...] = ()
    since_ns: int = 0
    tail: Sum = (0, 0)
    prints: tuple[int, ...] = ()
    inode: int = 0
    form: str = ""
    header: str = ""
    lead: bytes = b""

    @property
    def mark(self) -> Mark:
        """The place."""
        return Mark(self.head, self.offset, self.tail, self.prints)
