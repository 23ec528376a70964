"""A spool is one device's: what was captured under one name is never sent under another."""

from pathlib import Path

import pytest

from edge_agent.errors import ConfigError
from edge_agent.process import FILE_NAME, claim


def test_samples_of_one_device_are_not_sent_as_another_s(tmp_path: Path) -> None:
    claim(tmp_path, "one", 0)
    claim(tmp_path, "one", 5)
    with pytest.raises(ConfigError, match=r"5 samples of device one.*sent as two's"):
        claim(tmp_path, "two", 5)
    claim(tmp_path, "two", 0)
    assert (tmp_path / FILE_NAME).read_text() == "two"


def test_a_spool_from_before_names_were_noted_is_taken_as_it_is(tmp_path: Path) -> None:
    claim(tmp_path, "one", 5)
    assert (tmp_path / FILE_NAME).read_text() == "one"


def test_a_disk_that_takes_no_note_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    claim(tmp_path / "gone", "one", 5)
