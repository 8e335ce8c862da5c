"""PNG files by hand: of kinds that Pillow reads and does not write, or of sizes that they claim."""

import struct
import zlib


def png_of(width, height, *, depth=8, colour=2, rows=b""):
    """A PNG of that header, whose pixels are the rows, each after its filter byte."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(rows)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
