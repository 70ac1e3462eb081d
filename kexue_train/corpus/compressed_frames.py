"""Cuts zstd and lz4 streams into their frames, and names what the decoder cannot read although it is not damaged.

Skippable frames (``pzstd``, seekable zstd and others write them) hold no data and are passed over. Sources: RFC 8878
and lz4_Frame_format.md of github.com/lz4/lz4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kexue_train.foundation.errors import CorpusError
from kexue_train.foundation.runtime import format_size

MAX_WINDOW_BYTES = 1 << 27
"""The farthest that the zstd decoder of Arrow looks back."""
_MAX_BLOCK_BYTES = 1 << 17
_MAX_WINDOW_CODE = (27 - 10) << 3
_ZSTD, _LZ4, _LEGACY_LZ4 = 0xFD2FB528, 0x184D2204, 0x184C2102
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


class _Packed(Protocol):
    def read(self) -> bytes: ...


class FrameError(Exception):
    """No frame begins where one should, or one without data is cut off."""


class _Bytes:
    """Gives a stream in the sizes that its structure asks for."""

    def __init__(self, packed: _Packed) -> None:
        self._packed, self._held = packed, b""

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer at the end."""
        while len(self._held) < size and (more := self._packed.read()):
            self._held += more
        data, self._held = self._held[:size], self._held[size:]
        return data

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes as they come in."""
        while size and (data := self._held or self._packed.read()):
            self._held = data[size:]
            yield data[:size]
            size -= min(len(data), size)


class Frame:
    """The compressed bytes of one frame, as a file that Arrow reads from."""

    closed = False  # what Arrow asks a file for, as for ``close``

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]

    def skip_rest(self) -> None:
        """Read what the decoder left, so that the next frame begins where it should."""
        for _ in self._pieces:
            pass

    def close(self) -> None:
        """Leave the closing to whoever opened the file."""


def iter_frames(path: str, packed: _Packed, compression: str) -> Iterator[Frame]:
    """Yield the frames that hold data; the rest of each has to be skipped before the next is asked for.

    Raises:
        CorpusError: Also on reading a frame: it needs a dictionary, or a larger window than the decoder has.
        FrameError: If something else than a frame follows.
    """
    magic, cut = _CUTS[compression]
    stream = _Bytes(packed)
    while head := stream.take(4):
        number = int.from_bytes(head, "little")
        if number == magic:
            yield Frame(cut(path, stream, head))
        elif number in _SKIPPABLE and len(head) == 4:
            size = stream.take(4)
            num_bytes = int.from_bytes(size, "little")
            if len(size) < 4 or sum(map(len, stream.pieces(num_bytes))) < num_bytes:
                raise FrameError("a skippable frame is cut off")
        elif number == _LEGACY_LZ4:
            raise CorpusError(
                f"{path}: holds a legacy lz4 frame (lz4 -l), which is not read; convert it with: "
                f"lz4 -dc {path} | lz4 > NEW.lz4"
            )
        else:
            raise FrameError(f"no frame begins with {head!r}")


def _cut_zstd(path: str, stream: _Bytes, magic: bytes) -> Iterator[bytes]:
    descriptor = stream.number(1)
    is_single_segment = bool(descriptor & 0x20)
    size_bytes = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    window_code = b"" if is_single_segment else stream.take(1)
    dictionary = stream.take((0, 1, 2, 4)[descriptor & 3])
    content = stream.take(size_bytes)
    if any(dictionary):
        raise _needs_dictionary(path, "zstd", dictionary, "zstd -d -D DICTIONARY")
    content_bytes = int.from_bytes(content, "little")
    window_bytes = content_bytes if is_single_segment else _window_bytes(window_code)
    is_large = window_bytes > MAX_WINDOW_BYTES
    if is_large:
        if content_bytes > MAX_WINDOW_BYTES:
            raise _needs_window(path, window_bytes)
        # Nothing refers back farther than to the start of the frame. So as long as the frame has unpacked to no more
        # than the decoder's own limit, a window of that size is all it needs, whatever its header asks for.
        window_code = bytes([_MAX_WINDOW_CODE])
    yield magic + bytes([descriptor]) + window_code + dictionary + content
    num_blocks = 0
    while len(header := stream.take(3)) == 3:
        if is_large and num_blocks == MAX_WINDOW_BYTES // _MAX_BLOCK_BYTES:
            raise _needs_window(path, window_bytes)
        yield header
        block = int.from_bytes(header, "little")
        is_last, is_run = block & 1, block >> 1 & 3 == 1
        yield from stream.pieces(1 if is_run else block >> 3)
        num_blocks += 1
        if is_last:
            yield stream.take(4 if descriptor & 4 else 0)  # the checksum
            return


def _window_bytes(code: bytes) -> int:
    exponent, mantissa = divmod(int.from_bytes(code, "little"), 8)
    base = 1 << (10 + exponent)
    return base + base // 8 * mantissa


def _cut_lz4(path: str, stream: _Bytes, magic: bytes) -> Iterator[bytes]:
    head = stream.take(2)
    flags = int.from_bytes(head[:1], "little")
    head += stream.take(8 if flags & 8 else 0)  # the size of the content
    if flags & 1:
        raise _needs_dictionary(path, "lz4", stream.take(4), "lz4 -d -D DICTIONARY")
    yield magic + head + stream.take(1)
    while len(size := stream.take(4)) == 4:
        yield size
        if not any(size):  # the end mark
            yield stream.take(4 if flags & 4 else 0)  # the checksum
            return
        yield from stream.pieces((int.from_bytes(size, "little") & 0x7FFFFFFF) + (4 if flags & 16 else 0))


_CUTS: dict[str, tuple[int, Callable[[str, _Bytes, bytes], Iterator[bytes]]]] = {
    "zstd": (_ZSTD, _cut_zstd),
    "lz4": (_LZ4, _cut_lz4),
}


def _needs_window(path: str, window_bytes: int) -> CorpusError:
    option = f"--long={(window_bytes - 1).bit_length()}"
    return CorpusError(
        f"{path}: is zstd data with a window of {format_size(window_bytes)}; at most "
        f"{format_size(MAX_WINDOW_BYTES)} of a frame are read with such a window; give it unpacked: "
        f"zstd -d {option} {path}, or through a pipe: zstd -dc {option} {path} | kexue shuffle - --format FORMAT ..."
    )


def _needs_dictionary(path: str, compression: str, dictionary: bytes, command: str) -> CorpusError:
    return CorpusError(
        f"{path}: is {compression} data that was compressed with the dictionary "
        f"{int.from_bytes(dictionary, 'little')}, which the file does not hold; give it unpacked: {command} {path}"
    )
