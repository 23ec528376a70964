"""Signatures end: somebody is warned in time, and there is a way back even after the root has expired."""

from datetime import timedelta
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from pipelines.errors import RefusedError
from pipelines.rollout.keys import PASSPHRASE, KeyFolder, load_signer, new_key
from pipelines.rollout.repository import RoleExpiry, expiry_warnings
from pipelines.rollout.role_files import RoleFiles, check_draft, draft_root, install_root, read_draft, sign_draft
from tests.fakes import model_repository as fake
from tests.fakes.run_core import RunCore

DAY_S = 86_400.0


@pytest.mark.parametrize(("days_left", "state"), [(364, "ok"), (122, "ok"), (121, "due"), (1, "due"), (0, "over"), (-1, "over")])
def test_a_third_of_its_life_before_its_end_a_signature_is_due(core: "fake.Core", days_left: int, state: str) -> None:
    now = core.repository.files.now()
    assert RoleExpiry("targets", now + timedelta(days=days_left), timedelta(days=365)).state(now) == state


def test_what_is_due_is_warned_of_with_what_to_do(core: "fake.Core") -> None:
    core.publish()
    now = core.repository.files.now()
    assert expiry_warnings(core.repository.expiries(), now) == ()
    warnings = expiry_warnings(core.repository.expiries(), now + timedelta(days=300))
    assert [text for text in warnings if "bright.0" in text and "catchment model sign" in text]
    assert not [text for text in warnings if "root" in text]


def test_a_repository_that_nobody_published_into_for_a_year_is_signed_again(core: "fake.Core") -> None:
    core.publish()
    core.clock.ahead_s = 366 * DAY_S
    assert {each.role: each.state(core.repository.files.now()) for each in core.repository.expiries()}["targets"] == "over"
    assert core.repository.sign() == 2
    assert {each.state(core.repository.files.now()) for each in core.repository.expiries()} == {"ok"}


def test_a_root_that_has_expired_is_replaced_and_devices_go_on(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    core.clock.ahead_s = 3 * 366 * DAY_S
    with pytest.raises(RefusedError, match=r"root\.json is expired"):
        core.publish(fake.tiny_model(0.1))
    document = draft_root(core.repository.files, {})
    sign_draft(document, core.keys.signers("root")[:1])
    with pytest.raises(RefusedError, match="1 of the 2 signatures that the root in force asks for"):
        install_root(core.repository.files, document)
    sign_draft(document, core.keys.signers("root")[1:2])
    install_root(core.repository.files, document)
    core.repository.sign()
    assert device.want(core.publish(fake.tiny_model(0.1))) == "active"
    assert device.version == 2


def test_keys_are_replaced_in_a_ceremony_on_separate_machines(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.want(core.publish())
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    public = new_key(tmp_path / "team.pem")
    assert b"ENCRYPTED" in (tmp_path / "team.pem").read_bytes()
    draft = tmp_path / "draft.json"
    draft.write_bytes(draft_root(core.repository.files, {"targets": [public]}).to_bytes())
    for path in sorted(core.keys.folder.glob("root-*.pem"))[:2]:
        document = read_draft(draft)
        sign_draft(document, [load_signer(path)])
        draft.write_bytes(document.to_bytes())
    changes, lacks = check_draft(core.repository.files, read_draft(draft))
    assert f"targets: with key {public.keyid}" in changes
    assert lacks == []
    install_root(core.repository.files, read_draft(draft))
    (tmp_path / "team.pem").rename(core.keys.folder / "targets-2.pem")
    assert core.repository.sign() == 2
    assert device.want(core.publish(fake.tiny_model(0.1))) == "active"
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(RefusedError, match=f"targets-2.pem is no usable private key: .*{PASSPHRASE}"):
        core.publish(fake.tiny_model(0.2))


def test_the_commands_of_a_ceremony_work_together(tmp_path: Path, run_core: RunCore) -> None:
    config, draft = tmp_path / "core.toml", tmp_path / "draft.json"
    config.write_text('lake = "lake"\n[broker]\nport = 1\n')
    core = ("-c", str(config))
    assert run_core("model", "init", *core).code == 0
    assert "days left" in run_core("model", "expiry", *core).out
    assert run_core("model", "key", "new", str(tmp_path / "new.pem")).code == 0
    assert run_core("model", "key", "new", str(tmp_path / "new.pem")).code == 3
    replaced = ("--role", "targets", "--public", str(tmp_path / "new.pub.json"))
    assert run_core("model", "root", "draft", str(draft), *replaced, *core).code == 0
    assert run_core("model", "root", "install", str(draft), *core).code == 3
    for number in (1, 2):
        assert run_core("model", "root", "sign", str(draft), str(tmp_path / f"model-keys/root-{number}.pem")).code == 0
    verified = run_core("model", "root", "verify", str(draft), *core)
    assert (verified.code, "targets: with key" in verified.out) == (0, True)
    (tmp_path / "new.pem").rename(tmp_path / "model-keys/targets-2.pem")
    assert "1 roles signed again" in run_core("model", "root", "install", str(draft), *core).out
    assert "1 roles signed again" in run_core("model", "sign", *core).out


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "root"])
def test_one_command_replaces_the_keys_of_a_role(tmp_path: Path, run_core: RunCore, role: str) -> None:
    (tmp_path / "core.toml").write_text('lake = "lake"\n[broker]\nport = 1\n')
    core = ("-c", str(tmp_path / "core.toml"))
    assert run_core("model", "init", *core).code == 0
    files = RoleFiles(tmp_path / "lake/models", KeyFolder(tmp_path / "model-keys"), SystemClock())
    before = set(files.root().roles[role].keyids)
    done = run_core("model", "rotate", role, "--draft", str(tmp_path / "next.json"), *core)
    assert (done.code, f"with new {role} keys" in done.out) == (0, True)
    after = set(files.root().roles[role].keyids)
    assert (len(after), before & after) == (len(before), set())
    assert not (tmp_path / "next.json").exists()


def test_without_enough_root_keys_a_rotation_is_a_draft_for_those_who_have_them(tmp_path: Path, run_core: RunCore) -> None:
    (tmp_path / "core.toml").write_text('lake = "lake"\n[broker]\nport = 1\n')
    core, draft = ("-c", str(tmp_path / "core.toml")), str(tmp_path / "next.json")
    assert run_core("model", "init", *core).code == 0
    for number in (2, 3):
        (tmp_path / f"model-keys/root-{number}.pem").rename(tmp_path / f"elsewhere-{number}.pem")
    assert "lacks 1 of the 2 signatures" in run_core("model", "rotate", "targets", "--draft", draft, *core).out
    assert run_core("model", "rotate", "targets", "--draft", draft, *core).code == 3
    assert run_core("model", "root", "sign", draft, str(tmp_path / "elsewhere-2.pem")).code == 0
    assert "in force" in run_core("model", "root", "install", draft, *core).out
