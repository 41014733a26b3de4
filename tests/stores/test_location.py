"""Claims about locations, and the texts that name them."""

import string
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.stores.location import SCHEMES, Location, parse_place, without_credentials

WORDS = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
NAMES = st.text(string.printable[:94] + "é ☃", min_size=1, max_size=8).filter(
    lambda name: "/" not in name and name.strip(".")
)
SECRETS = st.text(string.ascii_letters, min_size=12, max_size=12)


@given(st.sampled_from(sorted(SCHEMES)), WORDS, st.lists(WORDS, max_size=3))
def test_an_address_is_itself_with_or_without_a_slash_at_its_end(
    scheme: str, host: str, parts: list[str]
) -> None:
    url = "/".join([f"{scheme}://{host}", *parts])
    place = parse_place(url)
    assert place == parse_place(f"{url}/") == Location(url)
    assert str(place) == url
    assert place.scheme == scheme


@given(WORDS, NAMES)
def test_a_name_below_a_location_is_its_name_whatever_it_holds(host: str, name: str) -> None:
    location = Location(f"s3://{host}/a")
    assert (location / name).name == name
    assert (location / name).parent == location


@given(WORDS, SECRETS, SECRETS, SECRETS)
def test_what_is_shown_holds_no_credentials(host: str, user: str, word: str, query: str) -> None:
    place = parse_place(f"https://{user}:{word}@{host}/path?token={query}")
    assert isinstance(place, Location)
    below = place / "name"
    for shown in map(str, (place, below, place.parent)):
        assert not any(secret in shown for secret in (user, word, query))
    assert user in below.url
    assert query in below.url
    assert repr(place) == f"Location('https://{host}/path')"


def test_a_container_before_an_account_is_shown() -> None:
    place = parse_place("abfss://container@account.dfs.core.windows.net/a")
    assert str(place) == "abfss://container@account.dfs.core.windows.net/a"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a/b", "a/b"),
        ("/a b/c%20d", "/a b/c%20d"),
        ("C:folder", "C:folder"),
        ("file:///a/b", "/a/b"),
        (f"file://{quote('/a b/é%')}", "/a b/é%"),
    ],
)
def test_other_texts_are_folders(text: str, path: str) -> None:
    assert parse_place(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://host/SECRETWORD", "unknown kind"),
        ("s3://", "names no bucket"),
        ("s3:///SECRETWORD", "names no bucket"),
        ("https://user:SECRETWORD@/a", "names no bucket or host"),
        ("https://[SECRETWORD", "names no bucket or host"),
        ("https://host:SECRETWORD/a", "names no bucket or host"),
        ("s3://user:SECRETWORD@bucket/a", "leave them out"),
    ],
)
def test_what_names_no_store_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        parse_place(text)
    assert "SECRETWORD" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--data", "--data"),
        ("build/data", "build/data"),
        ("http://host/a/b", "http://host/a/b"),
        ("http://u:SECRET@host/a?token=SECRET", "http://host/a"),
        ("--data=https://u:SE@CRET@host/a#SECRET", "--data=https://host/a"),
        ("http:/u:SECRET@host/a", "http:/host/a"),
        ("https://u:SEC/RET@host/a", "https://host/a"),
    ],
)
def test_texts_with_addresses_are_shown_without_credentials(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize("text", ["", "s3:/team/x", "http:/u:SECRET@h", "file://u:SECRET@h/a"])
def test_slips_of_addresses_are_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_place(text)
    assert "SECRET" not in str(caught.value)
