import hashlib
import json
from dataclasses import replace

import pytest

from data_prep.config import CorpusConfig, PrepConfig, check_config
from data_prep.contract.command_line import UserError
from data_prep.contract.shards import open_shards
from data_prep.corpus.documents import Document, Reject
from data_prep.filter_config import FiltersConfig, ScoreConfig, UrlBlocklistConfig
from data_prep.filters.registry import filtered, open_filters
from data_prep.stages.build import build_shards
from tests.data_prep.conftest import no_progress
from tests.data_prep.filters.generated_text import sentences


def opened(filters, **corpus):
    config = PrepConfig(output="x", corpus=CorpusConfig(**corpus), filters=filters)
    check_config(config)
    return open_filters(config)


def judged(filters, **facts):
    found = filtered(Document(id="x", text="some text", **facts), filters, 1)
    return (found.reason, found.detail, found.score) if isinstance(found, Reject) else None


@pytest.fixture
def blocklist(tmp_path):
    (tmp_path / "domains").write_text("\ufeff# sites\nBad.example\n\nwww.worse.example\nbücher.example\nco\n")
    (tmp_path / "urls").write_text("https://www.page.example/a/b/\nmixed.example/x?id=1#top\n")
    lists = UrlBlocklistConfig(enabled=True, domains=str(tmp_path / "domains"), urls=str(tmp_path / "urls"))
    return opened(FiltersConfig(url_blocklist=lists))


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("http://bad.example/x", "bad.example"),
        ("https://user@A.B.BAD.example:80/", "bad.example"),
        ("worse.example", "worse.example"),
        ("http://xn--bcher-kva.example./", "xn--bcher-kva.example"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://any.co/", "co"),
    ],
)
def test_domains_stand_for_their_subdomains(blocklist, url, domain):
    expected = ("url_blocklist.domain", f"{domain} is in filters.url_blocklist.domains", None)
    assert judged(blocklist, url=url) == expected


@pytest.mark.parametrize("url", ["http://page.example/a/b", "https://www.PAGE.example/a/b/#c", "mixed.example/x?id=1"])
def test_pages_are_blocked_by_themselves(blocklist, url):
    reason, detail, _ = judged(blocklist, url=url)
    assert reason == "url_blocklist.url"
    assert detail.endswith(" is in filters.url_blocklist.urls")


@pytest.mark.parametrize(
    "url",
    [None, "", "http://", "http://[", "/bad.example", "notbad.example", "http://example/bad.example",
     "http://bad.example.org/", "http://page.example/a", "http://page.example/a/b/c", "http://mixed.example/x?id=2"],
)  # fmt: skip
def test_other_urls_and_documents_without_one_pass(blocklist, url):
    assert judged(blocklist, url=url) is None


def test_documents_of_a_lower_score_or_none_are_dropped():
    filters = opened(FiltersConfig(score=ScoreConfig(enabled=True, min_score=3)), score_field="int_score")
    assert judged(filters, score=3.0) is None
    assert judged(filters, score=2.5) == ("score", "2.5, filters.score.min_score is 3", 2.5)
    assert judged(filters) == ("score.missing", "no number in 'int_score', corpus.score_field", None)
    assert judged(filters, score=-1.0) == ("score", "-1, filters.score.min_score is 3", -1.0)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (FiltersConfig(score=ScoreConfig(enabled=True, min_score=3)), r"score\.enabled needs corpus\.score_field"),
        (FiltersConfig(score=ScoreConfig(enabled=True)), r"score\.enabled needs filters\.score\.min_score: give"),
        (
            FiltersConfig(score=ScoreConfig(enabled=True, min_score=float("nan"))),
            r"min_score is nan: expected 0 or more",
        ),
        (FiltersConfig(url_blocklist=UrlBlocklistConfig(enabled=True)), r"url_blocklist\.enabled needs .*name a file"),
    ],
)
def test_options_without_what_they_need_are_refused(filters, said):
    with pytest.raises(UserError, match=said):
        check_config(PrepConfig(output="x", filters=filters))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read filters.url_blocklist.domains"),
        (b"a.example\nb.example/page\n", "line 2 is no domain, such as example.com: 'b.example/page'"),
        (b"\xff\n", "is no UTF-8"),
    ],
)
def test_lists_that_cannot_be_read_are_one_line(tmp_path, content, said):
    path = tmp_path / "domains"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        opened(FiltersConfig(url_blocklist=UrlBlocklistConfig(enabled=True, domains=str(path))))


def test_a_folder_is_made_without_them(tiny_config, tmp_path):
    texts = ["".join(sentences("English", 4, seed)) for seed in range(60)]
    lines = [{"text": text, "url": f"http://{n % 3}.example/{n}", "score": n % 4} for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "domains").write_text("2.example\n")
    config = replace(
        tiny_config,
        output=str(tmp_path / "shards"),
        corpus=CorpusConfig(paths=(str(tmp_path / "a.jsonl"),), url_field="url", score_field="score"),
        filters=FiltersConfig(
            url_blocklist=UrlBlocklistConfig(enabled=True, domains=str(tmp_path / "domains")),
            score=ScoreConfig(enabled=True, min_score=1),
        ),
    )
    assert build_shards(config, no_progress).rejects == {"url_blocklist.domain": 20, "score": 10}
    pinned = open_shards(config.output).manifest["configuration"]
    assert (pinned["corpus"]["url_field"], pinned["corpus"]["score_field"]) == ("url", "score")
    digest = hashlib.sha256((tmp_path / "domains").read_bytes()).hexdigest()
    assert pinned["filters"]["url_blocklist"]["domains_sha256"] == digest
