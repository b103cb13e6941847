"""What went into a shard folder, as numbers for its manifest and as a page for people (``report.html``).

The page is one file without scripts or network: inline style, inline SVG. The same manifest gives the same bytes.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.contract.files import write_atomically
from data_prep.contract.html_page import byte_size, escaped, html_page, html_table, percentage
from data_prep.contract.shard_format import INPUTS
from data_prep.contract.shard_index import ShardIndex
from data_prep.contract.tokenizer import MASK_TOKENS
from data_prep.report.statistics import (
    ROW_LENGTH_BINS,
    encodings_of,
    entry_names,
    fertility,
    merge,
    notes_on_encodings,
    notes_on_lines,
    notes_on_repairs,
)

REPORT = "report.html"
SHOWN_FILES = 10
SHOWN_LANGUAGES = 12
"""Of each source."""
SHOWN_SHARDS = 200
"""Of each split."""
SAMPLE_CHARACTERS = 300
_STYLE = """
:root { --bar: #3b6fb6; --mask: #1f5fae; --random: #b3530a; --kept: #2b7a3d;
  --mask-back: #dbe8fa; --random-back: #fde3cd; --kept-back: #d8f0dc; }
@media (prefers-color-scheme: dark) { :root { --bar: #6c9fe0; --mask: #9cc3f7; --random: #f5b27c; --kept: #8fd6a0;
  --mask-back: #1f3a5f; --random-back: #553014; --kept-back: #1d4527; } }
code, pre, .row, .sample { font-family: ui-monospace, monospace; font-size: .84rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile, pre, .row, details { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.tile { padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.1rem; font-weight: 600; font-variant-numeric: tabular-nums; }
svg rect { fill: var(--bar); }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; text-anchor: middle; }
.meters { display: block; width: 16rem; }
.meter { display: block; height: .55rem; min-width: 1px; margin-top: .45rem;
  border-radius: 2px; background: var(--bar); }
details { padding: .5rem .9rem; margin-top: .75rem; }
summary { cursor: pointer; }
.sample { margin: .1rem 0 .8rem; white-space: pre-wrap; unicode-bidi: isolate; }
pre, .row { padding: .8rem .9rem; margin: .75rem 0; white-space: pre-wrap; }
.row p { font-family: system-ui, sans-serif; }
mark { padding: 0 .25em; border-radius: .25em; }
mark s { text-decoration-thickness: 1px; opacity: .75; }
.mask { background: var(--mask-back); color: var(--mask); }
.random { background: var(--random-back); color: var(--random); }
.kept { background: var(--kept-back); color: var(--kept); }
"""

_MASKED = re.compile(r"\{(\S+?)(?:->(\S+?)|=)\}")


def write_report(
    folder: Path,
    manifest: Mapping[str, Any],
    indexes: Mapping[str, ShardIndex],
    rejects: Sequence[Mapping[str, Any]],
    rows: Sequence[str],
) -> None:
    """Write report.html; the same arguments give the same bytes.

    Args:
        manifest: of the folder, with ``statistics``: read, not_sampled, rejects (reason -> documents),
            sources (see ``source_statistics``), dropped_tokens, documents (see ``document_statistics``) and rows (see
            ``mask_statistics``).
        indexes: split -> its shards.
        rejects: a few of each reason, as {id, reason, detail, sample}.
        rows: a few rows as ``rows_as_text`` gives them: a line of numbers, then the words, {house->[MASK]} masked,
            {house->tree} replaced, {house=} kept.
    """
    sections = (
        _summary(manifest),
        _inputs(folder, manifest),
        _rejected(manifest["statistics"], rejects),
        _sources(manifest["statistics"].get("sources", [])),
        _languages(manifest["statistics"].get("sources", [])),
        _documents(manifest["statistics"]["documents"]),
        _packed(manifest),
        _masks(manifest),
        _sample_rows(rows),
        _shards(indexes),
        _configuration(manifest),
    )
    page = html_page(f"Shards {manifest['root_hash'][:12]}", "".join(sections), style=_STYLE)
    write_atomically(folder / REPORT, page)


def _chart(title: str, names: Sequence[str], counts: Sequence[int]) -> str:
    """A bar chart as inline SVG; every bar tells its count when pointed at."""
    width, height, top, bottom, side = 460, 170, 16, 18, 16
    step = (width - 2 * side) / max(len(counts), 1)
    every = -(-len(counts) // 12)
    highest = max(counts, default=0) or 1
    drawn = []
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        tall = max(1.0, (height - top - bottom) * count / highest) if count else 0.0
        left, middle, base = side + step * number, side + step * (number + 0.5), height - bottom
        drawn.append(
            f'<rect x="{left + step * 0.08:.1f}" y="{base - tall:.1f}" width="{step * 0.84:.1f}" height="{tall:.1f}">'
            f"<title>{escaped(name)}: {count:,}</title></rect>"
        )
        if number % every == 0:
            drawn.append(f'<text x="{middle:.1f}" y="{height - 5}">{escaped(name)}</text>')
        if count == highest:
            drawn.append(f'<text x="{min(max(middle, 28), width - 28):.1f}" y="{base - tall - 4:.1f}">{count:,}</text>')
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}">{"".join(drawn)}</svg></figure>\n'
    )


def _summary(manifest: Mapping[str, Any]) -> str:
    statistics, splits = manifest["statistics"], manifest["splits"]
    documents, rows = statistics["documents"], statistics["rows"]
    size = sum(split["size"] for split in splits.values())
    tiles = (
        ("documents", f"{documents['documents']:,}"),
        ("tokens", f"{documents['tokens']:,}"),
        (f"rows of {manifest['seq_length']}", f"{rows['rows']:,}"),
        ("in the shards", byte_size(size)),
        ("[UNK]", percentage(documents["unknown_tokens"], documents["tokens"])),
        ("padding", percentage(rows["padding_tokens"], rows["padding_tokens"] + rows["real_tokens"])),
    )
    shown = "".join(
        f'<div class="tile"><b>{value}</b><span class="soft">{name}</span></div>\n' for name, value in tiles
    )
    columns = ("documents", "tokens", "rows", "shards", "size")
    lines = [(name, *(split[column] for column in columns)) for name, split in splits.items()]
    return (
        f'<h1>Shards</h1>\n<p class="soft">root hash <code>{escaped(manifest["root_hash"])}</code></p>\n'
        f'<div class="tiles">\n{shown}</div>\n'
        + html_table(("split", "documents", "tokens", "rows", "shards", "bytes"), lines)
    )


def _inputs(folder: Path, manifest: Mapping[str, Any]) -> str:
    inputs = manifest.get("inputs", [])
    if isinstance(inputs, Mapping):
        with (folder / INPUTS).open() as stream:
            inputs = [json.loads(line) for line in stream]
    lines = [
        (escaped(entry["name"]) + _read_as(entry), entry["bytes"], f"<code>{escaped(entry['sha256'][:16])}</code>")
        for entry in inputs
    ]
    more = lines[SHOWN_FILES:]
    if more:
        lines = [*lines[:SHOWN_FILES], (f"and {len(more)} more", sum(int(line[1]) for line in more), "")]
    if not lines:
        return ""
    total = sum(entry["bytes"] for entry in inputs)
    encodings = "; ".join(notes_on_encodings(encodings_of(inputs), manifest["statistics"].get("sources", ())))
    return (
        f"<h2>What went in: {len(inputs):,} {'file' if len(inputs) == 1 else 'files'}, {byte_size(total)}</h2>\n"
        + (f"<p>{escaped(encodings)}; all else is UTF-8.</p>\n" if encodings else "")
        + html_table(("file", "bytes of text", "sha256"), lines)
    )


def _read_as(entry: Mapping[str, Any]) -> str:
    """In which encoding, where it is not UTF-8."""
    encoding = entry.get("named_encoding", entry.get("encoding"))
    return "" if encoding in (None, "utf-8") else f' <span class="soft">{escaped(encoding)}</span>'


def _rejected(statistics: Mapping[str, Any], rejects: Sequence[Mapping[str, Any]]) -> str:
    """Where the documents went, and samples of those that are not in the shards."""
    read, kept, counts = statistics["read"], statistics["documents"]["documents"], statistics["rejects"]
    parts = [("kept", kept), ("not sampled", statistics["not_sampled"]), *sorted(counts.items())]
    lines = []
    for name, count in parts:
        if count or name == "kept":
            meter = f'<span class="meter" style="width: {100 * min(count / max(read, 1), 1):.2f}%"></span>'
            shown = f'<span class="meters">{meter}</span>'
            lines.append((escaped(name.replace("_", " ")), count, percentage(count, read), shown))
    table = html_table((f"of {read:,} documents read", "documents", "share", ""), lines)
    samples = []
    for reason in sorted({str(reject["reason"]) for reject in rejects}):
        entries = "".join(
            f"<p><code>{escaped(reject['id'])}</code> {escaped(reject['detail'])}</p>\n"
            f'<div class="sample soft">{escaped(str(reject["sample"])[:SAMPLE_CHARACTERS])}</div>\n'
            for reject in rejects
            if reject["reason"] == reason
        )
        heading = f"{escaped(reason.replace('_', ' '))}: samples"
        samples.append(f"<details><summary>{heading}</summary>\n{entries}</details>\n")
    where = "<p>All that were left out are in <code>rejects.jsonl.gz</code>, each with its reason.</p>\n"
    notes = [*notes_on_repairs(statistics.get("repaired", 0)), *notes_on_lines(statistics.get("repeated_lines", {}))]
    changes = "".join(f"<p>{note}.</p>\n" for note in notes)
    told = table + changes + (where if counts else "")
    return "<h2>What stayed and what was left out</h2>\n" + told + "".join(samples)


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    """Where the documents of each entry of ``corpus.paths`` went, if there are several."""
    if len(sources) < 2:
        return ""
    weighted = any("weight" in source for source in sources)
    lines = []
    for entry, source in zip(entry_names(sources), sources, strict=True):
        rejects = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in source["rejects"].items())
        counts = (source["files"], source["read"], source["not_sampled"], source["documents"], source["tokens"])
        name = f"{entry}: <code>{escaped(source['first_file'])}</code>"
        times = (f"{source.get('weight', 1):g}",) if weighted else ()
        share = percentage(source["documents"], source["read"])
        lines.append((name, *counts, *_token_cells(source), *times, share, escaped(rejects)))
    times = ("times taken",) if weighted else ()
    names = ("source, first file", "files", "read", "not sampled", "kept", "tokens", *_TOKEN_CELLS, *times)
    names += ("share kept", "left out")
    return "<h2>By source</h2>\n" + html_table(names, lines)


_TOKEN_CELLS = ("tokens a word", "[UNK]")


def _token_cells(counts: Mapping[str, Any]) -> tuple[str, str]:
    """What the tokenizer makes of a source or a language."""
    unknown = percentage(counts["unknown_tokens"], counts["tokens"]) if counts.get("tokens") else ""
    return fertility(counts), unknown


def _languages(sources: Sequence[Mapping[str, Any]]) -> str:
    """What the filters took of each language and source, the largest first, if languages were identified."""
    lines = []
    for entry, source in zip(entry_names(sources), sources, strict=True):
        found = sorted(source.get("languages", {}).items(), key=lambda item: (-item[1]["read"], item[0]))
        for language, count in found[:SHOWN_LANGUAGES]:
            rejected = sum(count["rejects"].values())
            reasons = ", ".join(
                f"{taken:,} {reason.replace('_', ' ')}" for reason, taken in sorted(count["rejects"].items())
            )
            share = percentage(count["read"] - rejected, count["read"])
            lines.append((entry, escaped(language), count["read"], *_token_cells(count), share, escaped(reasons)))
        rest = found[SHOWN_LANGUAGES:]
        if rest:
            read = sum(count["read"] for _, count in rest)
            taken = sum(sum(count["rejects"].values()) for _, count in rest)
            total = merge(
                {key: count.get(key, 0) for key in ("words", "tokens", "unknown_tokens")} for _, count in rest
            )
            kept = percentage(read - taken, read)
            lines.append((entry, f"{len(rest)} more", read, *_token_cells(total), kept, ""))
    if not lines:
        return ""
    names = ("source", "language", "seen by the filters", *_TOKEN_CELLS, "share kept", "taken by the filters")
    return "<h2>By language</h2>\n" + html_table(names, lines)


def _documents(documents: Mapping[str, Any]) -> str:
    lengths = {int(key): count for key, count in documents["document_length"].items()}
    exponents = range(min(lengths, default=1).bit_length() - 1, max(lengths, default=1).bit_length())
    powers = [1 << exponent for exponent in exponents]
    tenths = {round(10 * float(key)): count for key, count in documents["fertility"].items()}
    bins = range(min(tenths, default=0), max(tenths, default=-1) + 1)
    mean = documents["tokens"] / max(documents["words"], 1)
    return (
        "<h2>Documents</h2>\n"
        f"<p>{documents['characters']:,} characters, {documents['words']:,} words, {documents['tokens']:,} tokens: "
        f"{mean:.3f} tokens a word. {documents['unknown_tokens']:,} tokens are [UNK].</p>\n"
        '<div class="charts">\n'
        + _chart(
            "Documents by tokens, from this power of two on",
            [f"{power:,}" for power in powers],
            [lengths.get(power, 0) for power in powers],
        )
        + _chart(
            "Documents by fertility, tokens a word",
            [f"{tenth // 10}.{tenth % 10}" for tenth in bins],
            [tenths.get(tenth, 0) for tenth in bins],
        )
        + "</div>\n"
    )


def _packed(manifest: Mapping[str, Any]) -> str:
    rows, seq_length = manifest["statistics"]["rows"], manifest["seq_length"]
    dropped = manifest["statistics"]["dropped_tokens"]
    width = -(-seq_length // ROW_LENGTH_BINS)
    starts = range(1, seq_length + 1, width)
    cells = rows["real_tokens"] + rows["padding_tokens"]
    lost = f" {dropped:,} tokens of documents' ends were dropped." if dropped else ""
    return (
        "<h2>Rows</h2>\n"
        f"<p>{rows['rows']:,} rows, {rows['short_rows']:,} of them shorter than {seq_length}; "
        f"{rows['padding_tokens']:,} of {cells:,} places ({percentage(rows['padding_tokens'], cells)}) are padding."
        f'{lost}</p>\n<div class="charts">\n'
        + _chart(
            "Rows by real tokens, from this length on",
            [f"{start:,}" for start in starts],
            [rows["row_length"].get(str(start), 0) for start in starts],
        )
        + "</div>\n"
    )


def _masks(manifest: Mapping[str, Any]) -> str:
    rows, variants = manifest["statistics"]["rows"], manifest["num_variants"]
    mask = manifest.get("configuration", {}).get("mask", {})
    wanted = {}
    if mask:
        rest = 1 - mask["mask_fraction"] - mask["random_fraction"]
        wanted = {"became_mask": mask["mask_fraction"], "random": mask["random_fraction"], "kept": rest}
    kinds = (
        ("became_mask", "mask", "[MASK]"),
        ("random", "random", "another token"),
        ("kept", "kept", "kept as it was"),
    )
    lines = [
        (
            f'<mark class="{colour}">{name}</mark>',
            rows[kind],
            percentage(rows[kind], rows["masked"]),
            f"{wanted[kind]:.2%}" if wanted else "-",
        )
        for kind, colour, name in kinds
    ]
    masked_share = percentage(rows["masked"], variants * rows["real_tokens"])
    return (
        "<h2>Masks</h2>\n"
        f"<p>{variants} maskings of every row, up to {manifest['masked_per_row']} tokens each: {rows['masked']:,} of "
        f"{rows['slots']:,} slots are in use, {masked_share} of the tokens "
        "([CLS] and [SEP] counted). A random token that happens to be the original counts as kept.</p>\n"
        + html_table(("what stands there", "masks", "share", "asked for"), lines)
    )


def _sample_rows(rows: Sequence[str]) -> str:
    if not rows:
        return ""
    shown = []
    for row in rows:
        head, _, words = row.strip("\n").partition("\n")
        shown.append(f'<div class="row"><p class="soft">{escaped(head)}</p>{_marked(words)}</div>\n')
    legend = (
        '<p><mark class="mask"><s>house</s> [MASK]</mark> masked, <mark class="random"><s>house</s> tree</mark> '
        'replaced, <mark class="kept">house</mark> chosen but kept; | stands before the start of a document.</p>\n'
    )
    return "<h2>The first rows, with one of their maskings</h2>\n" + legend + "".join(shown)


def _marked(words: str) -> str:
    """The words of a row as HTML, masked ones coloured."""
    pieces, end = [], 0
    for found in _MASKED.finditer(words):
        was, now = found.groups()
        pieces.append(escaped(words[end : found.start()]))
        if now is None:
            pieces.append(f'<mark class="kept">{escaped(was)}</mark>')
        else:
            kind = "mask" if now in MASK_TOKENS else "random"
            pieces.append(f'<mark class="{kind}"><s>{escaped(was)}</s> {escaped(now)}</mark>')
        end = found.end()
    return "".join([*pieces, escaped(words[end:])])


def _shards(indexes: Mapping[str, ShardIndex]) -> str:
    lines = [line for index in indexes.values() for line in _shards_of_split(index)]
    table = html_table(("file", "rows", "chunks", "bytes", "sha256"), lines)
    count = sum(index.num_shards for index in indexes.values())
    return f"<h2>Files</h2>\n<details><summary>{count:,} shards</summary>\n{table}</details>\n" if lines else ""


def _shards_of_split(index: ShardIndex) -> Iterator[tuple[str | int, ...]]:
    for shard in range(min(index.num_shards, SHOWN_SHARDS)):
        file = index.file(shard)
        sha256 = f"<code>{file['sha256']}</code>"
        yield file["name"], int(index.shard_rows[shard]), len(index.chunks(shard)), file["size"], sha256
    more = index.num_shards - SHOWN_SHARDS
    if more > 0:
        rows, size = (int(column[SHOWN_SHARDS:].sum()) for column in (index.shard_rows, index.shard_sizes))
        chunks = index.num_chunks - index.chunks(SHOWN_SHARDS).start
        yield f"and {more:,} more of {index.split}", rows, chunks, size, ""


def _configuration(manifest: Mapping[str, Any]) -> str:
    def listing(title: str, content: object) -> str:
        text = escaped(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False))
        return f"<details><summary>{title}</summary>\n<pre>{text}</pre></details>\n"

    tokenizer = {key: manifest[key] for key in ("tokenizer", "vocab_size", "special_ids") if key in manifest}
    return (
        "<h2>How it was made</h2>\n"
        + listing("Configuration", manifest.get("configuration", {}))
        + listing("Tokenizer", tokenizer)
        + listing("Library versions", manifest.get("libraries", {}))
    )
