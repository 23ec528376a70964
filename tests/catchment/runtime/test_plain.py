"""Text from outside is shown, never obeyed: on a terminal, in a log line, in printed JSON, in a page."""

import html
import io
import json
import subprocess
import sys
import unicodedata
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from catchment.runtime.plain import html_text, plain, plain_event, plain_json, plain_lines, plain_message
from catchment.runtime.terminal import PlainConsole, PlainTable, PlainTree, joined, stacked, styled
from tests.fakes.hostile import MARK, TEXT, acts, forged

ACTING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
ANY = st.text(st.characters(exclude_categories=()), max_size=200)


@given(ANY)
def test_no_text_keeps_a_character_that_acts(text: str) -> None:
    shown = plain(text)
    assert not {unicodedata.category(each) for each in shown} & (ACTING - {"Cf"})
    assert {each for each in shown if unicodedata.category(each) == "Cf"} <= {"\u200c", "\u200d"}
    shown.encode()  # no lone surrogate is left


@given(ANY)
def test_plain_text_stays_as_it_is_and_is_not_changed_twice(text: str) -> None:
    assert plain(plain(text)) == plain(text)
    words = "".join(each for each in text if unicodedata.category(each) not in ACTING)
    assert plain(words) == words


@pytest.mark.parametrize("words", ["Grüße, Zoë", "漢字かな交じり文", "می‌خواهم", "क्‍ष", "naïve [brackets] :colon:", "👍 ok"])
def test_the_languages_of_the_world_are_left_alone(words: str) -> None:
    assert plain(words) == words
    assert plain_lines(words) == words


def test_what_would_act_is_shown_by_its_number() -> None:
    assert plain("a\x1b[31m\x9b\u202e\nb\ud800\U000e0041") == r"a\x1b[31m\x9b\u202e\nb\ud800\U000e0041"


def test_very_long_text_is_cut_and_says_by_how_much() -> None:
    shown = plain("x" * 1_000_000, 100)
    assert shown == "x" * 100 + "… (999,900 more characters)"


def test_lines_after_the_first_of_a_message_cannot_pose_as_messages() -> None:
    assert plain_message("one\ntwo\n  three") == "one\n  two\n    three"
    assert plain_message("\nTry next:") == "\nTry next:"
    assert not forged(plain_message(TEXT))


@given(st.dictionaries(ANY.filter(lambda text: not any("\ud800" <= each <= "\udfff" for each in text)), ANY | st.integers()))
def test_printed_json_says_the_same_and_holds_no_character_that_acts(document: dict[str, Any]) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False), json.dumps(document, indent=1)):
        printed = plain_json(text)
        assert json.loads(printed) == document
        assert acts(printed) == ""


def test_text_in_a_page_is_neither_markup_nor_turned_round() -> None:
    shown = html_text(TEXT)
    assert "<" not in shown
    assert html.unescape(shown) == plain(TEXT)
    assert html_text("\"'&<>") == "&quot;&#x27;&amp;&lt;&gt;"


def printed(*objects: object, **layout: object) -> str:
    out = io.StringIO()
    PlainConsole(file=out, force_terminal=True, width=200).print(*objects, **layout)
    return out.getvalue()


def test_a_console_obeys_no_text_wherever_it_stands() -> None:
    table = PlainTable(TEXT, title=TEXT, caption=TEXT)
    table.add_column(TEXT)
    table.add_row(TEXT, styled(TEXT, "red"))
    table.add_row(joined("a", styled(TEXT, "red")), stacked([TEXT, "b"]))
    tree = PlainTree(TEXT)
    tree.add(TEXT).add(TEXT)
    foreign = Table(TEXT, title=TEXT)
    foreign.add_row(TEXT)
    for thing in (TEXT, table, tree, foreign, Text(TEXT), styled(TEXT, "red")):
        output = printed(thing)
        assert acts(output) == ""
        assert "\x1b]8" not in output
        assert MARK in output
    assert "[red]x[/red]" in printed("[red]x[/red]", highlight=False)
    assert not forged(printed(TEXT))
    assert not forged(printed(table))


def test_an_ordinary_console_would_have_obeyed_it() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=200).print(TEXT.replace("[/]", ""))
    assert acts(out.getvalue())


def test_a_log_line_is_one_line_and_obeys_nothing() -> None:
    out = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[
            structlog.processors.format_exc_info,
            plain_event,
            structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False),
        ],
    )
    try:
        raise ValueError(TEXT)  # noqa: TRY301  # to be logged
    except ValueError:
        logger.info(TEXT, reason=TEXT, many=[TEXT], none=None, count=3, is_good=True, exc_info=True)
    line = out.getvalue()
    assert acts(line) == ""
    assert line.count("\n") == 1
    assert "count=3" in line
    assert "is_good=true" in line


def test_what_nobody_caught_is_shown_too() -> None:
    script = (
        "import warnings, logging, threading\n"
        "from catchment.runtime.plain import plain_tracebacks\n"
        "from tests.fakes.hostile import TEXT\n"
        "plain_tracebacks()\nwarnings.warn(TEXT)\nlogging.getLogger('x').warning(TEXT)\n"
        "def fail(): raise ValueError(TEXT)\n"
        "one = threading.Thread(target=fail); one.start(); one.join()\nfail()\n"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(MARK) == 4
    assert acts(done.stderr) == ""
