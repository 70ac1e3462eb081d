"""What the decoder of zstd or lz4 cannot do is no damage, and what it can do is done, however the stream is made."""

from __future__ import annotations

import gc
import io
import random
import struct

import pytest

from kexue_train.corpus.streams import Unpacked, open_stream
from kexue_train.foundation.errors import CorpusError, DamagedInputError
from tests.corpus.written_formats import PACKERS

LINES = b"".join(b"line %d\n" % i for i in range(2000))
SKIPPABLE = struct.pack("<II", 0x184D2A57, 5) + b"hello"
NAMES = {"zst": "zstd", "lz4": "lz4"}
ZSTD = b"\x28\xb5\x2f\xfd"
BLOCK_BYTES = 1 << 17


def unpack(data, suffix):
    stream = Unpacked("a", io.BytesIO(data), NAMES[suffix])
    return b"".join(iter(lambda: stream.read(1 << 20), b""))


def with_window(exponent, num_blocks):
    """Return a zstd frame of blocks of one repeated byte each, which asks for a window of ``2**exponent`` bytes."""
    blocks = [struct.pack("<I", (BLOCK_BYTES << 3) | 0b10 | (i == num_blocks - 1))[:3] for i in range(num_blocks)]
    return ZSTD + bytes([0, (exponent - 10) << 3]) + b"".join(block + b"a" for block in blocks)


@pytest.mark.parametrize("suffix", NAMES)
@pytest.mark.parametrize("form", ["{s}{f}", "{f}{s}", "{f}{s}{f}", "{s}{s}{f}{f}{s}", "{s}"])
def test_frames_without_data_are_passed_over(suffix, form):
    frame = PACKERS[suffix](LINES)
    parts = [{"s": SKIPPABLE, "f": frame}[sign] for sign in form if sign in "sf"]
    assert unpack(b"".join(parts), suffix) == LINES * parts.count(frame)


@pytest.mark.parametrize("exponent", [28, 30, 31])
def test_a_large_window_is_no_matter_while_little_is_unpacked(exponent):
    assert unpack(with_window(exponent, 3) + SKIPPABLE + with_window(exponent, 1), "zst") == b"a" * 4 * BLOCK_BYTES


def test_a_large_window_that_is_needed_is_named_with_the_command():
    stream = Unpacked("a.zst", io.BytesIO(with_window(31, 1025)), "zstd")
    assert len(stream.read(1 << 26)) == 1 << 26
    with pytest.raises(CorpusError, match=r"a window of 2\.15 GB; .*zstd -d --long=31 a\.zst") as caught:
        stream.read(1 << 27)
    assert not isinstance(caught.value, DamagedInputError)


def test_a_frame_that_tells_its_size_is_refused_before_it_is_read():
    header = ZSTD + bytes([0b1110_0000]) + struct.pack("<Q", 3 * 10**8)  # one segment: the window is the content
    with pytest.raises(CorpusError, match=r"a window of 300 MB; .*zstd -d --long=29 a"):
        unpack(header, "zst")


@pytest.mark.parametrize(
    ("data", "suffix", "message"),
    [
        (ZSTD + b"\x01\x58\x07" + bytes(9), "zst", r"zstd data .* the dictionary 7, .*zstd -d -D DICTIONARY a"),
        (struct.pack("<IBBI", 0x184D2204, 0x61, 0x40, 7) + bytes(9), "lz4", r"the dictionary 7, .*lz4 -d -D"),
        (struct.pack("<I", 0x184C2102) + bytes(9), "lz4", r"legacy lz4 frame \(lz4 -l\), .*lz4 -dc a \| lz4"),
    ],
)
def test_what_cannot_be_read_is_named_and_is_no_damage(data, suffix, message):
    with pytest.raises(CorpusError, match=message) as caught:
        unpack(data, suffix)
    assert not isinstance(caught.value, DamagedInputError)


@pytest.mark.parametrize("suffix", NAMES)
def test_a_stream_cut_anywhere_is_damaged(suffix):
    frame = PACKERS[suffix](b"few lines\n" * 9)
    whole = frame + SKIPPABLE + frame
    for size in set(range(1, len(whole))) - {len(frame), len(frame + SKIPPABLE)}:
        with pytest.raises(DamagedInputError):
            unpack(whole[:size], suffix)


@pytest.mark.parametrize("suffix", NAMES)
def test_what_lies_before_the_damage_comes_first_even_if_it_is_little(suffix):
    stream = Unpacked("a", io.BytesIO(PACKERS[suffix](b"a\n") + bytes(9)), NAMES[suffix])
    assert stream.read(100) == b"a\n"
    with pytest.raises(DamagedInputError, match="no frame begins"):
        stream.read(100)


@pytest.mark.parametrize("suffix", NAMES)
def test_a_look_at_the_beginning_reads_no_more_than_that(tmp_path, suffix, capfd):
    """Arrow closes its file when it goes, which may be after ours is closed."""
    path = tmp_path / "a"
    path.write_bytes(PACKERS[suffix](random.Random(0).randbytes(1 << 20)))
    with open_stream(str(path), NAMES[suffix]) as stream:
        assert len(stream.read(100)) == 100
        at = stream._packed.num_bytes
    del stream
    gc.collect()
    assert at < 1 << 18
    assert capfd.readouterr().err == ""
