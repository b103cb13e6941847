import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export import configuration_narrowbert
from pipeline.layout import Layout, group_sublayers, kv_projections, parse_layout


@pytest.mark.parametrize(
    ("text", "full", "narrow"),
    [
        ("12sf", "sf" * 12, ""),
        ("12sf:", "sf" * 12, ""),
        ("2sf:10sf", "sf" * 2, "sf" * 10),
        ("2sf 10s:10f", "sfsf" + "s" * 10, "f" * 10),
        ("3sf 2s : 2f 7sf", "sf" * 3 + "ss", "ff" + "sf" * 7),
        (":12sf", "", "sf" * 12),
        ("s2f3sf", "sff" + "sf" * 3, ""),
        ("7sfwfwf sf", "sfwfwf" * 7 + "sf", ""),
        ("2sfwfwf : 16sf", "sfwfwf" * 2, "sf" * 16),
    ],
)
def test_notation_of_the_paper(text: str, full: str, narrow: str) -> None:
    assert parse_layout(text) == Layout(full=full, narrow=narrow)


@given(st.text("swf", max_size=12), st.text("sf", max_size=12))
def test_text_form_reads_back_as_the_same_layout(full: str, narrow: str) -> None:
    if "s" in full + narrow or "w" in full:
        layout = Layout(full=full, narrow=narrow)
        assert parse_layout(str(layout)) == layout


@pytest.mark.parametrize("text", ["12sf", "2sf:10sf", "2sf 10s:10f", "7sfwfwf sf", "2sfwfwf:16sf", "2w wf 2f:s"])
def test_text_form_is_short(text: str) -> None:
    assert str(parse_layout(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sf:w", "character 4 (sf:>>w<<): 'w' is a sublayer of full rows"),
        ("2sx:10sf", "character 3 (2s>>x<<:10sf)"),
        ("2sf::3s", "character 5 (2sf:>>:<<3s)"),
        ("2sf:10", "character 6 (2sf:1>>0<<)"),
        ("2 sf", "character 1 (>>2<< sf)"),
        ("0sf", "character 1 (>>0<<sf)"),
        ("1001sf", "a repeat count is 1 to 1000"),
        ("12SF", "character 3 (12>>S<<F)"),
        ("", "no attention sublayer"),
        ("4f:2f", "no attention sublayer"),
    ],
)
def test_wrong_strings_point_at_the_character(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what is tested
        parse_layout(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_control_keeps_every_sublayer() -> None:
    layout = parse_layout("2sf 10s:10f")
    assert (layout.control().full.count("s"), layout.control().full.count("f")) == (12, 12)
    assert layout.control().narrow == ""
    assert layout.num_layers == 12


@given(st.text("swf:0123 x", max_size=10))
def test_exported_configuration_reads_layouts_in_the_same_way(text: str) -> None:
    # The exported file stands alone and so has a parser of its own; the two must not drift apart.
    def outcome(parse: Callable[[str], object]) -> object:
        try:
            return parse(text)
        except ValueError as error:
            return str(error)

    ours = outcome(parse_layout)
    theirs = outcome(configuration_narrowbert.parse_layout)
    assert theirs == ((ours.full, ours.narrow) if isinstance(ours, Layout) else ours)


@pytest.mark.parametrize(
    ("narrow_kv", "expected"),
    [
        ("per_layer", [0, 1, 2, 3, 4]),
        ("shared", [0] * 5),
        ("grouped:1", [0, 1, 2, 3, 4]),
        ("grouped:2", [0, 0, 1, 1, 2]),
        ("grouped:9", [0] * 5),
    ],
)
def test_which_narrow_layers_share_keys_and_values(narrow_kv: str, expected: list[int]) -> None:
    assert kv_projections(narrow_kv, 5) == configuration_narrowbert.kv_projections(narrow_kv, 5) == expected


@pytest.mark.parametrize("narrow_kv", ["", "per layer", "grouped", "grouped:", "grouped:0", "grouped:-1", "grouped:2x"])
def test_other_ways_of_sharing_are_refused(narrow_kv: str) -> None:
    for read in (kv_projections, configuration_narrowbert.kv_projections):
        with pytest.raises(ValueError, match="is none of per_layer, shared, grouped:N"):
            read(narrow_kv, 5)


@given(st.text("swf", max_size=12))
def test_an_attention_and_the_feed_forward_after_it_are_one_layer(letters: str) -> None:
    groups = group_sublayers(letters)
    assert "".join(groups) == letters
    assert all(group in ("sf", "wf", "s", "w", "f") for group in groups)
    assert not any(first[-1] + second[0] in ("sf", "wf") for first, second in itertools.pairwise(groups))
