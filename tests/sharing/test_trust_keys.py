"""Claims about key files, and about the list of those who are trusted."""

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kdcache.errors import UsageError
from kdcache.sharing.keys import (
    PASSPHRASE,
    distrust_key,
    load_public,
    load_signer,
    load_trusted,
    make_key,
    trust_key,
    trusted_folder,
)
from tests.cli.conftest import Run, kdcache
from tests.sharing.signing import make_signer, trusting

__all__ = ["kdcache"]  # the fixture


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(PASSPHRASE, raising=False)


def test_a_new_key_is_its_owners_alone_and_its_public_part_tells_the_name(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        found = make_key(tmp_path / "key", name="Bild-Gruppe ü")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    public = load_public(tmp_path / "key.pub")
    assert (public.id, public.name) == (found, "Bild-Gruppe ü")
    assert load_signer(tmp_path / "key").public_key.keyid == found
    assert re.fullmatch(
        r"kdcache-ed25519 [0-9a-f]{64} Bild-Gruppe ü\n", (tmp_path / "key.pub").read_text()
    )


@pytest.mark.parametrize("there", ["key", "key.pub"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_key_overwrites_nothing(tmp_path: Path, there: str, kind: str) -> None:
    path = tmp_path / there
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "target")
        if kind == "link":
            (tmp_path / "target").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"never overwritten; choose another name"):
        make_key(tmp_path / "key", name="Me")
    assert sorted(tmp_path.iterdir()) == before
    assert kind == "dangling" or path.read_text() == "mine"


def test_the_folder_of_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    make_key(tmp_path / "keys" / "key", name="Me")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_a_key_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: is no folder; name another file"):
        make_key(tmp_path / "file" / "key", name="Me")


@pytest.mark.parametrize(
    "name", ["", " ", " a", "a\n", "a\tb", "\x1b[31m", "a\u202eb", "x" * 101, "\ud800"], ids=ascii
)
def test_a_name_that_a_terminal_would_not_print_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected the name of the key's owner") as caught:
        make_key(tmp_path / "key", name=name)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610])
def test_a_private_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "key", name="Me")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(UsageError, match=rf"mode {mode:03o}, expected 600\); run chmod 600"):
        load_signer(tmp_path / "key")
    (tmp_path / "key").chmod(0o400)
    load_signer(tmp_path / "key")


def test_an_encrypted_key_asks_for_its_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "très secret")
    found = make_key(tmp_path / "key", name="Me")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    assert load_signer(tmp_path / "key").public_key.keyid == found
    monkeypatch.setenv(PASSPHRASE, "wrong secret")
    with pytest.raises(UsageError, match=f"{PASSPHRASE} is not the passphrase") as caught:
        load_signer(tmp_path / "key")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv(PASSPHRASE, "")
    with pytest.raises(UsageError, match=f"the key is encrypted; set {PASSPHRASE}"):
        load_signer(tmp_path / "key")


def test_a_passphrase_that_a_key_does_not_need_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "key", name="Me")
    monkeypatch.setenv(PASSPHRASE, "needless")
    load_signer(tmp_path / "key")


def test_a_key_of_openssl_signs_too(tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    path.chmod(0o600)
    load_signer(path)


def test_other_files_are_no_private_keys(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    make_key(tmp_path / "key", name="Me")
    whole = (tmp_path / "key").read_bytes()
    public = (tmp_path / "key.pub").read_bytes()
    for data in (pem, whole[:60], b"", b"\xff" * 100, public, whole.replace(b"M", b"N")):
        path = tmp_path / "other"
        path.write_bytes(data)
        path.chmod(0o600)
        words = "a public key" if data == public else "no private Ed25519 key in PEM"
        with pytest.raises(UsageError, match=words) as caught:
            load_signer(path)
        assert whole.split(b"\n")[1].decode() not in str(caught.value)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, words in (("none", "No such file"), (".", "Is a dir"), ("pipe", "not a regular")):
        with pytest.raises(UsageError, match=words):
            load_signer(tmp_path / name)


# --- trust -------------------------------------------------------------------------------------


def test_nobody_is_trusted_at_first_and_a_key_is_until_it_is_not(tmp_path: Path) -> None:
    assert load_trusted().keys == {}
    found = make_key(tmp_path / "key", name="Vision team")
    assert trust_key(tmp_path / "key.pub").id == found
    assert trust_key(tmp_path / "key.pub").id == found, "twice is once"
    assert [key.name for key in load_trusted().keys.values()] == ["Vision team"]
    assert load_trusted().source == trusted_folder() == tmp_path / "config/kdcache/trusted"
    assert distrust_key("Vision team").id == found
    assert load_trusted().keys == {}
    trust_key(tmp_path / "key.pub", name="Others")
    assert load_trusted().keys[found].name == "Others"
    assert distrust_key(found[:8]).name == "Others"


def test_a_list_is_a_folder_or_one_file_that_is_there(tmp_path: Path) -> None:
    make_signer(tmp_path, "One")
    make_signer(tmp_path, "Two")
    assert len(load_trusted(tmp_path).keys) == 2, "private keys beside them are not read"
    assert len(load_trusted(tmp_path / "One.pub").keys) == 1
    with pytest.raises(UsageError, match="no trusted keys: No such file"):
        load_trusted(tmp_path / "none")


@pytest.mark.parametrize("name", ["One", "ONE", "O n e", "\uff2f\uff4e\uff45"], ids=ascii)
def test_two_keys_have_no_names_that_look_alike(tmp_path: Path, name: str) -> None:
    make_signer(tmp_path, "One")
    make_key(tmp_path / "two", name=name)
    trusting(tmp_path, "One")
    with pytest.raises(UsageError, match=r"One \(\w{16}\) is trusted already; choose another"):
        trust_key(tmp_path / "two.pub", folder=tmp_path / "trusted")
    (tmp_path / "trusted" / "two.pub").write_bytes((tmp_path / "two.pub").read_bytes())
    with pytest.raises(UsageError, match="delete one of the two files"):
        load_trusted(tmp_path / "trusted")


def test_a_key_with_a_second_name_is_refused(tmp_path: Path) -> None:
    make_signer(tmp_path, "One")
    trusting(tmp_path, "One")
    with pytest.raises(UsageError, match="kdcache keys distrust"):
        trust_key(tmp_path / "One.pub", name="Uno", folder=tmp_path / "trusted")


def test_a_list_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    make_signer(tmp_path, "One")
    trusting(tmp_path, "One")
    (tmp_path / "trusted").chmod(0o777)
    with pytest.raises(UsageError, match="anybody may add keys there; run chmod o-w"):
        load_trusted(tmp_path / "trusted")


KEY = "kdcache-ed25519 " + "ab" * 32
LINES = ["", "\n", KEY, f"{KEY} ", f"{KEY} a\nb\n", f"{KEY} a\n{KEY} b\n", f"{KEY} \x1b[2J"]
LINES += [f"ssh-ed25519 {'ab' * 32} me", f"kdcache-ed25519 {'ab' * 33} me", KEY.upper() + " me"]
LINES += [f"kdcache-ed25519 {chr(0x661) * 64} me", f"kdcache-ecdsa {'ab' * 32} me", "x" * 70_000]


@pytest.mark.parametrize("text", LINES, ids=lambda text: ascii(text[-24:]))
def test_other_files_are_no_public_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pub").write_text(text)
    with pytest.raises(UsageError, match=r"x\.pub: ") as caught:
        load_trusted(tmp_path)
    assert str(caught.value).isprintable()


def test_a_private_key_is_not_trusted_by_mistake(tmp_path: Path) -> None:
    make_key(tmp_path / "key", name="Me")
    with pytest.raises(UsageError, match="a private key, which its owner keeps"):
        trust_key(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "Nobody", "1234567", "\x1b[2J"], ids=ascii)
def test_whom_nobody_trusts_cannot_be_distrusted(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="names 0 of the 0 keys") as caught:
        distrust_key(text)
    assert str(caught.value).isprintable()


# --- the command line --------------------------------------------------------------------------


def test_keys_are_made_trusted_listed_and_distrusted(kdcache: Run, tmp_path: Path) -> None:
    path, folder = tmp_path / "key", tmp_path / "t"
    made: dict[str, Any] = kdcache("keys", "make", path, "--name", "Vision", "--json").value
    assert made["public"] == f"{path}.pub"
    assert kdcache("keys", "list").stdout.endswith("kdcache/trusted: no trusted keys\n")
    assert kdcache("keys", "list", "--json").value["keys"] == []
    told = kdcache("keys", "trust", f"{path}.pub", "--trusted", folder, "--name", "Them")
    assert (told.code, told.stderr) == (0, "")
    assert made["id"] in told.stdout
    listed = kdcache("keys", "list", "--trusted", folder)
    assert listed.stdout == f"{made['id'][:16]}  Them\n"
    gone = kdcache("keys", "distrust", "Them", "--trusted", folder, "--json")
    assert gone.value == {"id": made["id"], "name": "Them"}
    again = kdcache("keys", "make", path, "--name", "Vision")
    assert (again.code, again.stdout) == (2, "")
    shown = kdcache("keys", "make", tmp_path / "second", "--name", "Vision")
    assert "PRIVATE KEY" not in shown.stdout
    assert f"kdcache keys trust {tmp_path / 'second'}.pub" in shown.stdout


@pytest.mark.parametrize("command", ["make", "trust", "list", "distrust"])
def test_each_command_of_keys_answers_help_with_an_example(kdcache: Run, command: str) -> None:
    shown = kdcache("keys", command, "--help").stdout
    assert f"kdcache keys {command}" in shown
    assert "Example:" in shown
