""".txt and .jsonl -> documents, for any share of a file."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, clean_documents, sample, whole_document
from data_prep.corpus.encodings.decoder import Decoder
from data_prep.corpus.formats.text_fields import Facts, documents_of_record, with_facts
from data_prep.corpus.streams import BLOCK_BYTES, DamagedFile, TextStream

LINE_BYTES = 1 << 25
"""A longer line of .jsonl, or record of .csv, is rejected."""

_STRETCH_BYTES = 1 << 24
"""A longer text of .txt is decoded in stretches of this size."""


def read_lines(
    stream: TextStream, file: CorpusFile, partition: Partition, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of the lines or paragraphs that start in the partition."""
    if file.kind == "jsonl":
        yield from _read_jsonl(stream, file.name, partition.end, config, cleaning)
    elif config.txt_documents == "line":
        yield from _read_txt_lines(stream, file.name, partition.end, cleaning)
    elif config.txt_documents == "paragraph":
        yield from _read_txt_paragraphs(stream, file.name, partition.end, cleaning)
    else:
        yield from _read_txt_file(stream, file.name, cleaning)


def _read_txt_file(stream: TextStream, name: str, cleaning: CleaningConfig) -> Iterator[Document | Reject]:
    yield from _stretched(name, _blocks_of_file(stream), stream.decoder, cleaning)


def _read_txt_lines(stream: TextStream, name: str, end: int, cleaning: CleaningConfig) -> Iterator[Document | Reject]:
    while stream.position < end:
        start, number = stream.position, stream.number
        line = stream.read_line(BLOCK_BYTES)
        if not line:
            return
        stream.last_start = start
        whole = line.endswith(b"\n") or (stream.at_end() and stream.damage is None)
        if not whole:
            yield from _stretched(f"{name}:{number}", _blocks_of_line(stream, line), stream.decoder, cleaning)
        elif not line.isspace():
            yield from decoded(f"{name}:{number}", line, stream.decoder, cleaning)


def _read_txt_paragraphs(
    stream: TextStream, name: str, end: int, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    while stream.position < end:
        start, number = stream.position, stream.number
        if not stream.previous_blank:  # inside a paragraph of an earlier partition
            stream.skip_line()
            continue
        blocks = _blocks_of_paragraph(stream)
        try:
            first = next(blocks, b"")
        except DamagedFile as damage:  # in a line that has only white space so far
            stream.last_start = start
            yield Reject(id=f"{name}:{number}", reason="damaged_file", detail=str(damage), sample="")
            return
        if not first:
            continue
        stream.last_start = start
        yield from _stretched(f"{name}:{number}", itertools.chain([first], blocks), stream.decoder, cleaning)


def _blocks_of_file(stream: TextStream) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block
    if stream.damage is not None:
        raise stream.damage


def _blocks_of_line(stream: TextStream, block: bytes) -> Iterator[bytes]:
    """The rest of the line that begins with ``block``."""
    while block:
        yield block
        if block.endswith(b"\n"):
            return
        block = stream.read_line(BLOCK_BYTES)
    if stream.damage is not None:
        raise stream.damage


def _blocks_of_paragraph(stream: TextStream) -> Iterator[bytes]:
    """Lines up to the next that holds white space only; nothing where that is the first one."""
    while True:
        block = stream.read_line(BLOCK_BYTES)
        shortened = False
        while block.isspace() and not block.endswith(b"\n"):  # may be a line of white space, however long
            shortened, block = True, stream.read_line(BLOCK_BYTES)
        stream.previous_blank = not block or block.isspace()
        if stream.previous_blank:
            break
        if shortened:
            yield b" "
        yield from _blocks_of_line(stream, block)
    if not block and stream.damage is not None:
        stream.previous_blank = False
        raise stream.damage


def _stretched(
    document_id: str, blocks: Iterator[bytes], decoder: Decoder, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of one text of any size that comes in blocks."""
    yield from clean_documents(document_id, _stretches(document_id, blocks, decoder, cleaning.max_characters), cleaning)


def _stretches(
    document_id: str, blocks: Iterator[bytes], decoder: Decoder, max_characters: int
) -> Iterator[str | Reject]:
    size = max(_STRETCH_BYTES, 4 * max_characters)  # so that no text is cut that could be one document
    buffer = bytearray()
    try:
        for block in blocks:
            buffer += block
            while len(buffer) > size:
                cut = _cut(buffer, size)
                yield _text_or_reject(document_id, bytes(buffer[:cut]), decoder)
                del buffer[:cut]
    except DamagedFile as damage:
        yield Reject(
            id=document_id, reason="damaged_file", detail=str(damage), sample=sample(bytes(buffer[:BLOCK_BYTES]))
        )
        return
    yield _text_or_reject(document_id, bytes(buffer), decoder)


def _cut(buffer: bytearray, size: int) -> int:
    """Where to cut: behind white space, else in front of a UTF-8 character."""
    cut = max(buffer.rfind(space, 0, size) for space in (b" ", b"\n")) + 1
    if cut:
        return cut
    cut = size
    while cut > size - 4 and 0x80 <= buffer[cut] < 0xC0:
        cut -= 1
    return cut


def _text_or_reject(document_id: str, data: bytes, decoder: Decoder) -> str | Reject:
    text = decoder.text(data)
    return undecodable(document_id, data, decoder) if text is None else text


def undecodable(document_id: str, data: bytes, decoder: Decoder) -> Reject:
    """The reject of bytes that are no text."""
    return Reject(id=document_id, reason="undecodable", detail=decoder.problem(data), sample=sample(data))


def decoded(document_id: str, data: bytes, decoder: Decoder, cleaning: CleaningConfig) -> Iterator[Document | Reject]:
    found = decoder.read(data)
    if found is None:
        yield undecodable(document_id, data, decoder)
    else:
        documents = whole_document(document_id, found.text, cleaning)
        yield from with_facts(documents, Facts(encoding=found.encoding))


def _read_jsonl(
    stream: TextStream, name: str, end: int, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    while stream.position < end:
        start, number = stream.position, stream.number
        line = stream.read_line(LINE_BYTES)
        if not line:
            return
        stream.last_start = start
        document_id = f"{name}:{number}"
        if not line.endswith(b"\n"):
            problem = _unfinished_line(stream, document_id, line)
            if problem is not None:
                yield problem
                continue
        if line.isspace():
            continue
        content = line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line
        yield from _json_documents(document_id, content, stream.decoder, config, cleaning)


def _unfinished_line(stream: TextStream, document_id: str, line: bytes) -> Reject | None:
    """Why a line that does not end in a line end cannot be read; None if it is the file's last and whole."""
    beginning = sample(line[:BLOCK_BYTES])
    too_long = len(line) >= LINE_BYTES and not stream.at_end()
    if too_long:
        stream.skip_line()
    if stream.inside_line and stream.at_end() and stream.damage is not None:
        return Reject(id=document_id, reason="damaged_file", detail=str(stream.damage), sample=beginning)
    if too_long:
        return Reject(id=document_id, reason="line_too_long", detail=f"more than {LINE_BYTES} bytes", sample=beginning)
    return None


def _json_documents(
    document_id: str, line: bytes, decoder: Decoder, config: CorpusConfig, cleaning: CleaningConfig
) -> Iterator[Document | Reject]:
    found = decoder.read(line)
    if found is None:
        yield undecodable(document_id, line, decoder)
        return
    content = found.text
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        detail = str(error) or "nested too deeply"
        yield Reject(id=document_id, reason="not_json", detail=detail, sample=sample(content))
        return
    yield from parsed_documents(document_id, record, content, config, cleaning, found.encoding)


def parsed_documents(
    document_id: str,
    record: Any,
    content: str,
    config: CorpusConfig,
    cleaning: CleaningConfig,
    encoding: str | None = None,
) -> Iterator[Document | Reject]:
    """The documents of what JSON was parsed to; ``encoding`` as of a document."""
    if isinstance(record, dict):
        yield from documents_of_record(document_id, record, content, config, cleaning, encoding)
    else:
        detail = f"a {type(record).__name__}"
        yield Reject(id=document_id, reason="not_an_object", detail=detail, sample=sample(content))
