"""SPDX expressions: what is one, what it is called, and what to write instead."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.sharing.licences import MAX_LENGTH, check_licence, listed_address


@pytest.mark.parametrize(
    ("written", "normalised"),
    [
        ("Apache-2.0", "Apache-2.0"),
        ("apache-2.0 and mit", "Apache-2.0 AND MIT"),
        (" MIT\nOR  cc-by-4.0 ", "MIT OR CC-BY-4.0"),
        ("((MIT))", "MIT"),
        ("(MIT OR Apache-2.0) and BSD-3-Clause", "(MIT OR Apache-2.0) AND BSD-3-Clause"),
        ("MIT OR MIT AND Apache-2.0", "MIT OR (MIT AND Apache-2.0)"),
        ("GPL-2.0", "GPL-2.0-only"),
        ("gpl-2.0+", "GPL-2.0-or-later"),
        ("apache-2.0+", "Apache-2.0+"),
        (
            "gpl-2.0-only with classpath-exception-2.0",
            "GPL-2.0-only WITH Classpath-exception-2.0",
        ),
        ("LicenseRef-Our-Own.2", "LicenseRef-Our-Own.2"),
        ("MIT OR DocumentRef-x:LicenseRef-y", "MIT OR DocumentRef-x:LicenseRef-y"),
    ],
)
def test_an_expression_is_written_as_spdx_writes_it(written: str, normalised: str) -> None:
    assert check_licence(written, option="--data-licence") == normalised
    assert check_licence(normalised, option="--data-licence") == normalised


def test_a_licence_of_ones_own_is_never_taken_for_a_listed_one() -> None:
    assert check_licence("LicenseRef-Apache", option="x") == "LicenseRef-Apache"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "AND", "()", "(MIT", "MIT)", "MIT AND", "OR MIT", "MIT OR OR MIT", "MIT (MIT)"),
        *("MIT WITH Apache-2.0", "Classpath-exception-2.0", "MIT OR Classpath-exception-2.0"),
        *("Classpath-exception-2.0 WITH MIT", "GPL-2.0-only WITH LicenseRef-a", "(" * 400 + "MIT"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--output-licence: .* is no SPDX expression"):
        check_licence(text, option="--output-licence")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("Apache 2.0", "Apache-2.0"),
        ("cc by 4", "CC-BY-4.0"),
        ("BSD3Clause", "BSD-3-Clause"),
        ("MIT MIT", "MIT"),
    ],
)
def test_an_unknown_licence_is_refused_with_the_nearest_known_ones(text: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"{text!r} is no licence .*which has.*{near}"):
        check_licence(f"MIT OR {text}", option="x")


@pytest.mark.parametrize("text", ["NONE", "NOASSERTION", "qqqqqq", "<b>", "LicenseRef-ä", "MIT/"])
def test_what_is_not_listed_is_no_licence(text: str) -> None:
    with pytest.raises(UsageError, match=r"no licence of the SPDX list.*LicenseRef-NAME"):
        check_licence(text, option="x")


def test_an_endless_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="at most"):
        check_licence(" OR ".join(["MIT"] * MAX_LENGTH), option="x")


_PARTS = st.sampled_from(
    [
        *("MIT", "mit", "Apache-2.0", "GPL-2.0+", "LicenseRef-a", "Classpath-exception-2.0", "x"),
        *("and", "OR", "with", "(", ")", "+"),
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(_PARTS, max_size=9).map(" ".join)))
def test_any_text_is_an_expression_that_stays_as_it_is_or_is_refused(text: str) -> None:
    try:
        found = check_licence(text, option="x")
    except UsageError:
        return
    assert check_licence(found, option="x") == found


def test_only_a_listed_licence_has_an_address_there() -> None:
    assert listed_address("MIT") == "https://spdx.org/licenses/MIT.html"
    for text in ("MIT OR Apache-2.0", "LicenseRef-a", "mit", "Classpath-exception-2.0", "NONE"):
        assert listed_address(text) is None


def test_the_list_is_not_loaded_before_a_licence_is_checked() -> None:
    code = "import sys, kdcache.sharing.licences; assert 'license_expression' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
