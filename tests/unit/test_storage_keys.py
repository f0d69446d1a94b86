from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.storage import ObjectKey, object_key
from workers.storage.errors import InvalidKey

pytestmark = pytest.mark.job_processing


@pytest.mark.parametrize("path", ["bucket/a/b.bin", "/bucket/a/b.bin"])
def test_a_path_is_a_bucket_and_a_key(path: str) -> None:
    key = object_key(path)
    assert key == ObjectKey("bucket", "a/b.bin")
    assert key.directories == ("bucket", "a")
    assert key.name == "b.bin"
    assert str(key) == "bucket/a/b.bin"


@pytest.mark.parametrize(
    "name", ["with space", "a+b", "ü", "h#1", "per%20cent", "…", "~", ".hidden", "a..b", "..."]
)
def test_unusual_names_are_kept_as_they_are(name: str) -> None:
    assert str(object_key(f"bucket/{name}")) == f"bucket/{name}"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "bucket",
        "bucket/",
        "/bucket",
        "//bucket/key",
        "bucket//key",
        "bucket/key/",
        "bucket/../key",
        "../bucket/key",
        "bucket/..",
        "bucket/./key",
        "./key",
        "//etc/passwd",
        "bucket//etc/passwd",
    ],
)
def test_a_path_cannot_lead_out_of_a_node(path: str) -> None:
    with pytest.raises(InvalidKey, match="source_path"):
        object_key(path)


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85"])
def test_control_characters_are_refused_and_not_repeated_in_the_message(character: str) -> None:
    with pytest.raises(InvalidKey, match="control character") as caught:
        object_key(f"bucket/a{character}b")
    assert character not in str(caught.value)


@pytest.mark.parametrize(
    "path", [".rfw/tmp/x", "bucket/.rfw/x", "bucket/.RFW/x", "bucket/.\uff52fw/x", "bucket/.rfw"]
)
def test_our_own_corner_of_a_node_is_reserved(path: str) -> None:
    with pytest.raises(InvalidKey, match="reserved"):
        object_key(path)


def test_only_the_top_of_a_bucket_is_reserved() -> None:
    assert str(object_key("bucket/a/.rfw")) == "bucket/a/.rfw"


def test_a_key_of_1024_bytes_is_the_longest() -> None:
    assert len(object_key("bucket/" + "ü" * 512).key) == 512
    with pytest.raises(InvalidKey, match="1,025 bytes"):
        object_key("bucket/" + "ü" * 512 + "a")


@pytest.mark.parametrize("path", ["bucket/\ud800", "\ud800/key"])
def test_broken_unicode_is_refused(path: str) -> None:
    with pytest.raises(InvalidKey, match="Unicode"):
        object_key(path)


@given(st.text(alphabet=st.sampled_from("ab./\\ \0.%2e"), max_size=12))
def test_whatever_is_accepted_stays_below_the_root(path: str) -> None:
    try:
        key = object_key(path)
    except InvalidKey:
        return
    parts = (*key.directories, key.name)
    assert len(parts) >= 2
    assert "/".join(parts) == str(key) == path.removeprefix("/")
    assert not any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in parts)
