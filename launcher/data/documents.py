"""Documents of one piece of input, in order; lines that cannot be used are told, not raised."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from launcher.data.extras import import_extra
from launcher.data.pieces import Piece

TextUnit = Literal["file", "line"]
LONGEST_TEXT = 1 << 24
"""Bytes of one document that are encoded at once; a longer text file is cut at a line's end."""
_ROWS = 1024  # of Parquet, held at once


@dataclass(frozen=True)
class Document:
    """Text that becomes tokens."""

    text: str
    ends: bool = True
    """False: the next one continues it."""


@dataclass(frozen=True)
class Bad:
    """A line or row that was left out."""

    line: int
    """From 1, counted from the start of the piece; 0: the file itself."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How inputs are read."""

    text_field: str = "text"
    """Name of the field or column that has the text."""
    text_unit: TextUnit = "file"
    """What a document is in plain text."""


def read_documents(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """Everything in a piece; text that is empty is passed over."""
    readers = {
        "jsonl": _read_jsonl,
        "text": _read_text if reading.text_unit == "file" else _read_text_lines,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }
    return readers[piece.kind](piece, reading)


def count_lines_before(piece: Piece) -> int:
    """How many lines or rows of its file lie before a piece: for reports."""
    if piece.start == 0:
        return 0
    if piece.kind == "parquet":
        metadata = import_extra("pyarrow.parquet", "Parquet").ParquetFile(piece.path).metadata
        return sum(metadata.row_group(group).num_rows for group in range(piece.start))
    with open(piece.path, "rb") as stream:
        left, count = piece.start - 1, 1  # the line that holds the byte before is not ours
        while left > 0 and (chunk := stream.read(min(left, 1 << 22))):
            left -= len(chunk)
            count += chunk.count(b"\n")
    return count


def _read_jsonl(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    for number, line in _lines(piece):
        if isinstance(line, Bad):
            yield line
        elif not line.isspace():
            yield from _kept(number, _parse(line, reading.text_field))


def _parse(line: bytes, field: str) -> str | Bad:
    try:
        document = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Bad(0, f"no UTF-8 ({error.reason} at byte {error.start})")
    except (ValueError, RecursionError) as error:
        return Bad(0, f"no JSON ({error})")
    if not isinstance(document, dict):
        return Bad(0, "not an object")
    if field not in document:
        names = ", ".join(list(document)[:8])
        return Bad(0, f"no field {field!r}; there are: {names}")
    return _as_text(document[field], field)


def _as_text(value: Any, field: str) -> str | Bad:
    if not isinstance(value, str):
        return Bad(0, f"{field!r} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Bad(0, f"{field!r} has half of a surrogate pair")
    return value


def _kept(number: int, found: str | Bad) -> Iterator[Document | Bad]:
    if isinstance(found, Bad):
        yield Bad(number, found.reason)
    elif found:
        yield Document(found)


def _read_text(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """The file as one document, without lines that are no UTF-8."""
    number, has_text = 1, False
    try:
        with _open(piece.path) as stream:
            rest = b""
            while block := stream.read(LONGEST_TEXT):
                block = rest + block
                cut = block.rfind(b"\n") + 1 or _last_character(block)
                rest, block = block[cut:], block[:cut]
                for found in _decode(block, number):
                    has_text |= isinstance(found, Document)
                    yield found
                number += block.count(b"\n")
            for found in _decode(rest, number):
                has_text |= isinstance(found, Document)
                yield found
    except _DAMAGE as error:
        yield Bad(number, f"damaged from here on ({error})")
    if has_text:
        yield Document("", ends=True)


def _decode(block: bytes, number: int) -> Iterator[Document | Bad]:
    """Parts of a document; line by line only where something is wrong."""
    try:
        text = block.decode()
        if text:
            yield Document(text, ends=False)
        return
    except UnicodeDecodeError:
        pass
    good: list[str] = []
    for offset, line in enumerate(_split_lines(block)):
        try:
            good.append(line.decode())
        except UnicodeDecodeError as error:
            yield Bad(number + offset, f"no UTF-8 ({error.reason} at byte {error.start})")
    if good:
        yield Document("".join(good), ends=False)


def _split_lines(block: bytes) -> list[bytes]:
    """Lines with their ends; only a line feed ends one, as everywhere else here."""
    *whole, rest = block.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _last_character(block: bytes) -> int:
    """Where a block without lines can be cut: in front of a last character that is not whole."""
    for back in range(1, min(4, len(block)) + 1):
        if block[-back] & 0xC0 != 0x80:  # not a continuation byte
            return len(block) - back
    return len(block)


def _read_text_lines(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    for number, line in _lines(piece):
        if isinstance(line, Bad):
            yield line
            continue
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Bad(number, f"no UTF-8 ({error.reason} at byte {error.start})")
            continue
        if text and not text.isspace():
            yield Document(text)


def _lines(piece: Piece) -> Iterator[tuple[int, bytes | Bad]]:
    """Lines that start inside the piece, numbered from 1."""
    number = 0
    try:
        with _open(piece.path) as stream:
            place = piece.start
            if piece.start:
                stream.seek(piece.start - 1)
                place += len(stream.readline()) - 1
            while (piece.stop is None or place < piece.stop) and (line := stream.readline()):
                place += len(line)
                number += 1
                is_first = number == 1 and not piece.start
                yield number, line.removeprefix(b"\xef\xbb\xbf") if is_first else line
    except _DAMAGE as error:
        yield number + 1, Bad(number + 1, f"damaged from here on ({error})")


_DAMAGE = (OSError, EOFError, zlib.error)
"""What reading a torn or wrongly compressed file raises; gzip's own error is an OSError."""


def _open(path: str) -> Any:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_ZstdReader(path), 1 << 20)
    return open(path, "rb", buffering=1 << 20)


class _ZstdReader(io.RawIOBase):
    """Frames one after the other; unlike the library's reader it sees that the last one is torn."""

    def __init__(self, path: str) -> None:
        self._library = import_extra("zstandard", "a .zst file")
        self._stream = open(path, "rb")  # noqa: SIM115
        self._frame: Any = None
        self._waiting = self._decoded = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._decoded:
            chunk = self._waiting or self._stream.read(1 << 20)
            self._waiting = b""
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is torn")
                return 0
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                self._decoded = self._frame.decompress(chunk)
            except self._library.ZstdError as error:
                raise OSError(str(error)) from None
            if self._frame.eof:
                self._waiting, self._frame = self._frame.unused_data, None
        part = self._decoded[: len(buffer)]
        self._decoded = self._decoded[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def _read_parquet(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    parquet = import_extra("pyarrow.parquet", "Parquet")
    field, number = reading.text_field, 0
    try:
        file = parquet.ParquetFile(piece.path)
        if field not in file.schema_arrow.names:
            yield _no_column(field, file.schema_arrow.names)
            return
        groups = list(range(piece.start, piece.stop or file.num_row_groups))
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=[field]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield from _kept(number, _as_text(value, field))
    except _arrow_errors() as error:
        yield Bad(number, f"damaged from here on ({_first_line(error)})")


def _read_arrow(piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """What datasets.save_to_disk writes: Arrow's stream format; its file format too."""
    arrow = import_extra("pyarrow", "a data set of Hugging Face")
    field, number = reading.text_field, 0
    try:
        with arrow.memory_map(piece.path) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = arrow.ipc.open_file(source) if is_file else arrow.ipc.open_stream(source)
            if field not in reader.schema.names:
                yield _no_column(field, reader.schema.names)
                return
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                for value in batch.column(reader.schema.names.index(field)).to_pylist():
                    number += 1
                    yield from _kept(number, _as_text(value, field))
    except _arrow_errors() as error:
        yield Bad(number, f"damaged from here on ({_first_line(error)})")


def _arrow_errors() -> tuple[type[BaseException], ...]:
    arrow = import_extra("pyarrow", "a data set of Hugging Face")
    return arrow.ArrowException, OSError, UnicodeDecodeError


def _no_column(field: str, names: list[str]) -> Bad:
    return Bad(0, f"no column {field!r}; there are: {', '.join(names[:8])}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
