"""A zip file whose every byte follows from its entries: no compression, no timestamps, one order.

`zipfile` and `zlib` write different bytes in different versions; an archive that is named by its digest must not.
Because there is only one way to write given entries, reading can be strict too: `read_entries` accepts a file only
if it is exactly what `stream` would write, so a flipped bit anywhere, a gap, a comment, a link, a duplicate or a
trailing byte is refused. Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_SIGNATURE, _CENTRAL_SIGNATURE, _END_SIGNATURE = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION = 20
_MADE_BY_UNIX = 3 << 8 | _VERSION
_DATE_1980_01_01 = 0x0021
_PLAIN_FILE_0644 = 0o100644 << 16
_MAX_BYTES = (1 << 32) - 1  # beyond, zip64 would be needed
_MAX_ENTRIES = (1 << 16) - 1
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One plain file in the zip.

    Attributes:
        name: Relative path of letters, digits, `_`, `-`, `.`, no part of which starts with a dot.
        num_bytes: Size of the content.
        crc32: Its CRC-32.
        offset: Where the content starts in the zip file; set by `read_entries`.
    """

    name: str
    num_bytes: int
    crc32: int
    offset: int = -1


Source = Path | bytes


def chunks(source: Source) -> Iterator[bytes]:
    """The content of a source, in pieces."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def describe(name: str, source: Source) -> Entry:
    """The entry of a source. Reads it once."""
    num_bytes, crc32 = 0, 0
    for chunk in chunks(source):
        num_bytes += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
    return Entry(name, num_bytes, crc32)


def stream(contents: Sequence[tuple[Entry, Iterator[bytes]]]) -> Iterator[bytes]:
    """The bytes of the zip file with these entries, in this order.

    Raises:
        ValueError: If a name is not plain or not in ascending order, or a size needs zip64 (4 GiB).
    """
    check_names([entry.name for entry, _ in contents])
    offset, offsets = 0, []
    for entry, content in contents:
        offsets.append(offset)
        header = _local_header(entry)
        yield header
        yield from content
        offset += len(header) + entry.num_bytes
        if offset > _MAX_BYTES:
            raise ValueError(f"larger than 4 GiB at {entry.name} ({offset} bytes)")
    directory = b"".join(_central_header(entry, start) for (entry, _), start in zip(contents, offsets, strict=True))
    yield directory
    num = len(contents)
    yield _END.pack(_END_SIGNATURE, 0, 0, num, num, len(directory), offset, 0)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError unless the names are plain relative paths in strictly ascending order."""
    if len(names) > _MAX_ENTRIES:
        raise ValueError(f"too many entries ({len(names)})")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a plain relative name ({name!r})")
    for before, name in pairwise(names):
        if not before < name:
            raise ValueError(f"entries twice or out of order ({before!r}, {name!r})")


def read_entries(file: BinaryIO) -> tuple[Entry, ...]:
    """The entries of a zip file that `stream` wrote, after comparing every byte with what it would write.

    The content itself is compared with its CRC-32 only; digests are the caller's.

    Raises:
        ValueError: Says what is not as it would be written.
    """
    entries = _read_directory(file)
    expected = stream([(entry, _content(file, entry)) for entry in entries])
    position = 0
    for chunk in expected:
        file.seek(position)
        if file.read(len(chunk)) != chunk:
            raise ValueError(f"bytes at {position} are not those of an archive")
        position += len(chunk)
    return entries  # nothing follows: the end record was found at the very end


def read_content(file: BinaryIO, entry: Entry) -> bytes:
    """The content of one entry."""
    file.seek(entry.offset)
    return file.read(entry.num_bytes)


def iter_content(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The content of one entry, in pieces; the file may be moved between them."""
    position, end = entry.offset, entry.offset + entry.num_bytes
    while position < end:
        file.seek(position)
        chunk = file.read(min(_CHUNK_BYTES, end - position))
        if not chunk:
            raise ValueError(f"truncated in {entry.name}")
        position += len(chunk)
        yield chunk


def _content(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    crc32 = 0
    for chunk in iter_content(file, entry):
        crc32 = zlib.crc32(chunk, crc32)
        yield chunk
    if crc32 != entry.crc32:
        raise ValueError(f"wrong checksum of {entry.name}")


def _read_directory(file: BinaryIO) -> tuple[Entry, ...]:
    size = file.seek(0, 2)
    if size < _END.size:
        raise ValueError(f"too short ({size} bytes)")
    file.seek(size - _END.size)
    signature, _, _, _, num_entries, num_directory_bytes, directory_at, _ = _END.unpack(file.read(_END.size))
    if signature != _END_SIGNATURE or directory_at + num_directory_bytes + _END.size != size:
        raise ValueError("no end record at the end")
    file.seek(directory_at)
    directory = file.read(num_directory_bytes)
    entries, at, offset = [], 0, 0
    for _ in range(num_entries):
        if at + _CENTRAL.size > len(directory):
            raise ValueError("truncated directory")
        fields = _CENTRAL.unpack_from(directory, at)
        crc32, num_bytes, name_length = fields[7], fields[9], fields[10]
        name = directory[at + _CENTRAL.size : at + _CENTRAL.size + name_length].decode("latin-1")
        content_at = offset + _LOCAL.size + name_length
        entries.append(Entry(name, num_bytes, crc32, content_at))
        offset = content_at + num_bytes
        at += _CENTRAL.size + name_length
    return tuple(entries)


def _local_header(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    return (
        _LOCAL.pack(_LOCAL_SIGNATURE, _VERSION, 0, 0, 0, _DATE_1980_01_01, entry.crc32, entry.num_bytes, entry.num_bytes, len(name), 0)
        + name
    )


def _central_header(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode("ascii")
    return (
        _CENTRAL.pack(
            _CENTRAL_SIGNATURE,
            _MADE_BY_UNIX,
            _VERSION,
            0,
            0,
            0,
            _DATE_1980_01_01,
            entry.crc32,
            entry.num_bytes,
            entry.num_bytes,
            len(name),
            0,
            0,
            0,
            0,
            _PLAIN_FILE_0644,
            offset,
        )
        + name
    )
