"""Small images as PNG data addresses, with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLOUR_TYPES = {1: 0, 3: 2}  # channels -> PNG's number for gray and RGB


def data_address(rows: Sequence[bytes], clear: bytes) -> str:
    """A `data:` address of an image.

    Args:
        rows: height rows of width x channels bytes.
        clear: the colour, one byte per channel, whose pixels are transparent. Against an alpha channel it
            saves a third of the size.

    Source: PNG specification (third edition), sections 5 and 11.
    """
    channels = len(clear)
    header = struct.pack(">IIBBBBB", len(rows[0]) // channels, len(rows), 8, _COLOUR_TYPES[channels], 0, 0, 0)
    key = b"".join(b"\0" + bytes([level]) for level in clear)  # 16 bits a channel
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)  # 0: the row is not filtered
    chunks = _chunk(b"IHDR", header) + _chunk(b"tRNS", key) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
