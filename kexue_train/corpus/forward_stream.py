"""A stream for libraries that parse archives and dumps: it goes forward, keeps errors back and bounds what is held."""

from __future__ import annotations

from kexue_train.corpus.streams import ByteStream
from kexue_train.foundation.errors import DamagedInputError
from kexue_train.foundation.runtime import format_size

_STEP_BYTES = 1 << 18


class ContainerDamagedError(DamagedInputError):
    """The file around a record or a member is damaged, so that nothing can be read after it."""


class ForwardStream:
    """A binary file without damage: it only ends early. What is wrong is raised by ``check``, once all before is used.

    So what a library does with an error in the middle of its work does not decide which records are read.
    """

    def __init__(self, path: str, stream: ByteStream) -> None:
        self.path = path
        self.num_bytes = 0
        """How many were read."""
        self.last = b""
        """What the last call of ``read`` gave."""
        self._stream = stream
        self._limit: int | None = None
        self._limit_bytes = 0
        self._damage: DamagedInputError | None = None

    def allow(self, num_bytes: int) -> None:
        """Let so much be read until the next call: a header that goes on for ever is not to fill the memory."""
        self._limit, self._limit_bytes = self.num_bytes + num_bytes, num_bytes

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer at the end.

        Raises:
            ContainerDamagedError: If more is read than is allowed.
        """
        if self._limit is not None and self.num_bytes + size > self._limit:
            raise self.damaged(f"a header longer than {format_size(self._limit_bytes)}")
        parts, missing = [], size
        while missing > 0 and (data := self._read(missing)):
            parts.append(data)
            missing -= len(data)
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        return self.last

    def _read(self, size: int) -> bytes:
        if self._damage:
            return b""
        try:
            data = self._stream.read(size)
        except DamagedInputError as error:
            self._damage = error
            return b""
        self.num_bytes += len(data)
        return data

    def tell(self) -> int:
        """Return the offset in the stream."""
        return self.num_bytes

    def seek(self, offset: int) -> None:
        """Go forward to ``offset``, or to the end if that comes before."""
        while self.num_bytes < offset and self._read(min(_STEP_BYTES, offset - self.num_bytes)):
            pass

    def damaged(self, what: str) -> ContainerDamagedError:
        """Return the error that the file is damaged here: ``what`` is what was found, unless it cannot be unpacked."""
        if self._damage:
            return ContainerDamagedError(str(self._damage))
        return ContainerDamagedError(
            f"{self.path}: is cut off or damaged near byte {self.num_bytes} of it, unpacked ({what}); fetch or make "
            "the file again, or leave it out"
        )

    def check(self) -> None:
        """Raise the damage that ended the stream, if any.

        Raises:
            ContainerDamagedError: If it did not end where its file does.
        """
        if self._damage:
            raise self.damaged("")
