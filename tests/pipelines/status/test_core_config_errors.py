"""A wrong core.toml is answered with the line, the key and what was meant."""

from pathlib import Path

import pytest

from pipelines.config import load_core_config
from pipelines.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('lake = "lake"\n[bridge]\nseal_bites = 1\n', 3, "did you mean seal_bytes?"),
        ('lake = "lake"\n[broker]\nport = "1883"\n', 3, "a whole number without quotes"),
        ('[broker.tls]\nca = "ca.pem"\ncert = "c.pem"\n', 1, "field `key`"),
        ("[shares]\nmessages_per_s = -1\n", 2, "shares.messages_per_s must be 0 or more"),
        ("[maintain]\nkeep_versions = 0\n", 1, "keep_versions is at least 1"),
        ("lake = lake\n", 1, "text stands in quotes"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    (tmp_path / "core.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_core_config(tmp_path / "core.toml")
    assert str(caught.value).startswith(f"{tmp_path}/core.toml:{line}: ")
    assert words in str(caught.value)


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "core.toml").write_text('lake = "lake"\n[bridge]\nseal_bites = 1\n[run]\nrunner = 5\n')
    with pytest.raises(ConfigError) as caught:
        load_core_config(tmp_path / "core.toml")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()[:2]] == ["3", "5"]
