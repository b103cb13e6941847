"""``narrowbert-prep upload``: a shard folder into an object store."""

import time
from collections.abc import Sequence

from data_prep.commands.arguments import folder_parser
from data_prep.commands.terminal_progress import TerminalProgress
from data_prep.contract.command_line import path_or_url_argument


def run(argv: Sequence[str]) -> int:
    """Copy a folder to a URL; the exit code."""
    from data_prep.reuse.upload import upload

    parser = folder_parser(
        "upload",
        "Copy a shard folder to s3://, gs:// or abfs://. The manifest comes last: a folder there is complete where it "
        "has one. The same command goes on with a copy that was cut short.",
    )
    parser.add_argument(
        "url", type=path_or_url_argument, help="the folder in the store, such as s3://bucket/shards/mine"
    )
    options = parser.parse_args(argv)
    start = time.monotonic()
    with TerminalProgress() as progress:
        root_hash = upload(options.folder, options.url, progress)
    print(f"{options.url}: root hash {root_hash}, {time.monotonic() - start:.1f} s")
    return 0
