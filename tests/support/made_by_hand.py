"""Image files written byte by byte: Pillow writes few of the kinds that it reads."""

import struct
import zlib

import numpy as np


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    parts = [head, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def tiff(values: np.ndarray, *, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A little-endian grey TIFF file of one strip."""
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 134)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, values.nbytes), (339, 3, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values.tobytes()


def bmp(bits: int, rows: bytes, colours: list[int], width: int, *, old: bool = False) -> bytes:
    """A BMP file of one row, with a palette of greys; `old`: with a header of OS/2."""
    palette = b"".join(bytes([grey] * 3) + b"\0" * (not old) for grey in colours)
    if old:
        info = struct.pack("<IHHHH", 12, width, 1, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, bits, 0, len(rows), 2835, 2835, len(colours), 0)
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows
