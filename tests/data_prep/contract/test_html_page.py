from data_prep.contract.html_page import byte_size, duration, escaped, html_page, html_table, number, percentage


def test_numbers_and_durations() -> None:
    assert [number(value) for value in (0.00012, 12345.0, 4.5e6)] == ["0.00012", "12.35k", "4.5M"]
    assert [duration(value) for value in (45.0, 210.0, 8100.0)] == ["45 s", "3.5 min", "2.25 h"]


def test_sizes_and_shares() -> None:
    assert [byte_size(value) for value in (999, 1000, 3_400_000)] == ["999 bytes", "1.0 kB", "3.4 MB"]
    assert [percentage(1, 8), percentage(0, 0)] == ["12.50%", "-"]


def test_nasty_text_is_shown_and_does_nothing() -> None:
    assert escaped('<b title="x">\x00\u202e&') == "&lt;b title=&quot;x&quot;&gt;&lt;U+0000&gt;&lt;U+202E&gt;&amp;"
    assert escaped("two\nlines\tä") == "two\nlines\tä"


def test_numbers_stand_at_the_right_where_asked() -> None:
    table = html_table(["name", "rows", "share"], [["a", 1234, "5%"]])
    assert '<td>a</td><td class="number">1,234</td><td class="number">5%</td>' in table
    assert "number" not in html_table(["name", "rows"], [["a", "-"]], align_numbers=False)


def test_a_page_allows_scripts_only_where_it_has_one() -> None:
    assert "script" not in html_page("<t>", "body", style="")
    page = html_page("<t>", "body", style="", script="1")
    assert "<title>&lt;t&gt;</title>" in page
    assert "script-src 'unsafe-inline'" in page
    assert "<script>1</script></body>" in page
