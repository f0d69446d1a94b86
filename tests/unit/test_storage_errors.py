from __future__ import annotations

import pytest

from schemas.errors import PermanentError, TransientError
from workers.redaction import redact
from workers.storage.errors import (
    AccessDenied,
    CopyCorrupt,
    InvalidKey,
    InvalidReplication,
    NameRefused,
    NodeFull,
    NodeUnreachable,
    NotAnObject,
    ObjectMissing,
    SourceChanged,
    SourceCorrupt,
    Stopped,
    StorageError,
    SymlinkRefused,
    TargetChanged,
    TargetExists,
    UnknownNode,
)

pytestmark = pytest.mark.job_processing


@pytest.mark.parametrize(
    "kind", [ObjectMissing, NodeUnreachable, NodeFull, CopyCorrupt, TargetChanged, SourceChanged, Stopped]
)
def test_what_can_pass_is_tried_again(kind: type[StorageError]) -> None:
    error = kind("why")
    assert error.retryable
    assert isinstance(error, TransientError)
    assert error.name == kind.__name__


@pytest.mark.parametrize(
    "kind",
    [
        SourceCorrupt,
        InvalidKey,
        InvalidReplication,
        NameRefused,
        SymlinkRefused,
        NotAnObject,
        AccessDenied,
        TargetExists,
    ],
)
def test_what_cannot_pass_is_permanent(kind: type[StorageError]) -> None:
    error = kind("why")
    assert not error.retryable
    assert isinstance(error, PermanentError)


def test_an_unknown_node_lists_the_known_ones_and_the_setting_to_add() -> None:
    error = UnknownNode("n9", ["n2", "n1"])
    assert not error.retryable
    assert "'n9'" in str(error)
    assert "known: n1, n2" in str(error)
    assert "set RUSTFS_WORKERS_NODES__N9 to its URL" in str(error)


def test_a_node_whose_name_no_variable_can_hold_is_added_in_the_file() -> None:
    message = str(UnknownNode("rack-1", []))
    assert "known: none" in message
    assert "rustfs-workers.toml" in message
    assert "RUSTFS_WORKERS_NODES" not in message


def test_a_message_is_one_line_of_at_most_512_characters() -> None:
    message = str(NodeUnreachable("first\nsecond " + "x" * 1000))
    assert message.startswith("first second x")
    assert len(message) == 512
    assert message.endswith("…")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://user:hunter2@host/", "hunter2"),
        ("aws_secret_access_key=abc/def+1", "abc/def+1"),
        ('{"secret": "quoted value"}', "quoted value"),
        ("?X-Amz-Signature=0a1b2c&x=1", "0a1b2c"),
        ("X-Amz-Credential=AKIA123/20260101", "AKIA123"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AKIA9", "AKIA9"),
        ("authorization: Bearer abc.def", "abc.def"),
        ("session_token: tok-1", "tok-1"),
        ("password=p%40ss", "p%40ss"),
        ("https://user:p/w@host/", "p/w"),
        ("passwd=hunter2", "hunter2"),
        ("pwd: hunter2", "hunter2"),
        ("api_key=12345", "12345"),
        ("x-api-key: 12345", "12345"),
        ("apikey=12345", "12345"),
        ("token='abc def'", "def"),
        ("token='abc def", "def"),
        ("{'password': 'hunter2'}", "hunter2"),
        ("{b'password': b'hun ter2'}", "ter2"),
        (r"{'password': 'it\'s hunter2'}", "hunter2"),
        (r"{\'password\': \'hun ter2\'}", "ter2"),
        (r'"{\"password\": \"hun\\\"ter2\"}"', "ter2"),
        (r"{'password': 'back\\', 'token': 'hun ter2'}", "ter2"),
        ("<Error><AWSAccessKeyId>AKIA77</AWSAccessKeyId></Error>", "AKIA77"),
        ("<SignatureProvided>c2ln</SignatureProvided>", "c2ln"),
        ("<StringToSign>AWS4 20260101 x</StringToSign>", "20260101"),
    ],
)
def test_credentials_are_masked(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact(text)
    assert "***" in redact(text)
    assert secret not in str(NodeUnreachable(text))


def test_given_secrets_are_masked_wherever_they_stand() -> None:
    assert redact("it said xyzzy twice: xyzzy", ["xyzzy", ""]) == "it said *** twice: ***"


def test_the_credentials_in_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3tvalue")
    assert "s3cr3tvalue" not in str(NodeUnreachable("the body was s3cr3tvalue"))


def test_a_quoted_value_is_masked_as_a_whole_and_what_follows_it_stays() -> None:
    assert redact("token='abc def' was refused") == "token=*** was refused"
    assert redact("{'password': 'hunter2', 'user': 'bob'}") == "{'password': ***, 'user': 'bob'}"
    assert redact(r"{\'token\': \'a b\', \'user\': 1}") == r"{\'token\': ***, \'user\': 1}"
    assert redact("token='a\nb' was refused") == "token=*** was refused"
    assert redact("token='cut\nin worker.py") == "token=***\nin worker.py"


@pytest.mark.parametrize(
    "text",
    [
        "bucket/key on node n1: the object's key is token-free",
        "the password was wrong",
        "the api key is missing, and so is the token's secret",
        "KeyError: 'token'",
        "GET http://host:9000/bucket/a failed; ask admin@example.com",
        "<Key>a</Key>",
    ],
)
def test_ordinary_words_are_not_masked(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("front", ["", "token=", "token='", "<", "://a:"])
def test_what_anybody_may_send_takes_no_longer_than_its_length_says(front: str) -> None:
    """What goes back over the text for each of its parts takes many minutes here; what reads it once, none of them."""
    size = 256 * 1024
    pieces = (
        "a-",
        "token",
        "token=",
        "token='",
        'token=\\"',
        "token:'a\n",
        "token=bearer ",
        "token" + " " * 99,
    )
    more = ("<StringToSign", "://a:", "://a@", "<a>", "\\", " ", "token=" + "\\" * 8 + "'\n")
    for piece in (*pieces, *more):
        assert redact(front + piece * (size // len(piece)))
