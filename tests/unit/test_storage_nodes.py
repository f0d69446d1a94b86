from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from workers.storage import NodeConfigError, NodeRegistry, object_key, parse_node_url
from workers.storage.errors import NodeUnreachable, ObjectMissing, UnknownNode
from workers.storage.file_node import FileNode
from workers.storage.nodes import NodeUrl
from workers.storage.object_node import ObjectNode

pytestmark = pytest.mark.job_processing


def test_a_file_url_names_an_absolute_directory() -> None:
    assert parse_node_url("n1", "file:///srv/a%20b/../c/") == NodeUrl("file", root=Path("/srv/c"))
    assert parse_node_url("n1", "file://localhost/srv/n%231") == NodeUrl("file", root=Path("/srv/n#1"))


@pytest.mark.parametrize(("option", "durable"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_durability_is_part_of_a_file_url(option: str, durable: bool) -> None:  # noqa: FBT001
    assert parse_node_url("n1", f"file:///srv?durable={option}").durable is durable


def test_an_s3_url_names_bucket_prefix_endpoint_and_region() -> None:
    url = parse_node_url("s", "s3://bucket/a/b/?endpoint=http://127.0.0.1:9000&region=eu-central-1")
    assert url == NodeUrl(
        "s3", bucket="bucket", prefix="a/b", endpoint="http://127.0.0.1:9000", region="eu-central-1"
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("/srv/n1", "unknown scheme"),
        ("http://host/x", "unknown scheme"),
        ("file://srv/n1", "three slashes"),
        ("file:///", "other than /"),
        ("file:///srv/..", "other than /"),
        ("file:relative", "absolute path"),
        ("file:///srv/%00", "absolute path"),
        ("file:///srv/a%ff", "no UTF-8"),
        ("file:///srv/a\udcff", "no UTF-8"),
        ("file:///srv#1", "%23"),
        ("file:///srv?durable=maybe", "true or false"),
        ("file:///srv?durable=true&durable=false", "an option twice"),
        ("s3://bucket?region=", "an option without a value"),
        ("file:///srv?region=x", "unknown options: region"),
        ("file:///srv?durable", "no URL"),
        ("memory://?x=1", "none are known"),
        ("s3://", "needs a bucket"),
        ("s3://bk/x", "needs a bucket"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket?endpoint=host:9000", "endpoint like"),
        ("s3://bucket?endpoint=http://host:99999", "port"),
        ("s3://bucket?secret_access_key=hunter2", "AWS_SECRET_ACCESS_KEY"),
        ("s3://AKIA1:hunter2@bucket", "holds credentials"),
        ("s3://AKIA1:abc/hunter2@bucket", "holds credentials"),
        ("s3://AKIA1:abc#hunter2@bucket", "holds credentials"),
        ("s3://AKIA1:hunter2?x@bucket", "holds credentials"),
        ("s3://AKIA1:abc/hunter2@[bucket", "holds credentials"),
        ("file://me:abc/hunter2@host/x", "holds credentials"),
        ("s3://bucket?endpoint=http://u:hunter2@host", "without credentials"),
        ("s3://bucket?endpoint=http://u:abc/hunter2@host", "without credentials"),
        ("s3://[::1", "no URL"),
        ("s3://bucket#hunter2", "%23"),
        ("ftp://host/dir;password=hunter2", "unknown scheme"),
        ("ftp:host;hunter2", "unknown scheme"),
    ],
)
def test_an_url_that_cannot_be_used_is_refused_by_the_nodes_name(url: str, why: str) -> None:
    with pytest.raises(NodeConfigError, match=why) as caught:
        parse_node_url("n7", url)
    assert "n7" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_nodes_are_found_in_any_case_and_made_once(tmp_path: Path) -> None:
    registry = NodeRegistry({"N1": f"file://{tmp_path}", "m": "memory://"})
    assert registry.names == ("n1", "m")
    assert "N1" in registry
    assert 1 not in registry
    assert registry.node("N1") is registry.node("n1")
    assert isinstance(registry.node("n1"), FileNode)
    assert isinstance(registry.node("m"), ObjectNode)


def test_an_unknown_node_is_named_with_the_known_ones(tmp_path: Path) -> None:
    registry = NodeRegistry({"n1": f"file://{tmp_path}"})
    with pytest.raises(UnknownNode, match="known: n1"):
        registry.node("n2")


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a" * 65, "ü"])
def test_a_nodes_name_is_plain(name: str) -> None:
    with pytest.raises(NodeConfigError, match="node name"):
        NodeRegistry({name: "memory://"})


def test_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(NodeConfigError, match="twice"):
        NodeRegistry({"n1": "memory://", "N1": "memory://"})


@pytest.mark.parametrize("other", ["a", "a/below", "", "link"])
def test_two_names_for_one_directory_are_refused(tmp_path: Path, other: str) -> None:
    """One copy would count as two."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(NodeConfigError, match="share a directory"):
        NodeRegistry({"n1": f"file://{tmp_path}/a", "n2": f"file://{tmp_path}/{other}"})


def test_neighbouring_directories_are_two_nodes(tmp_path: Path) -> None:
    assert len(NodeRegistry({"n1": f"file://{tmp_path}/a", "n2": f"file://{tmp_path}/ab"})) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("?region=eu-central-1", "?endpoint=https://s3.eu-central-1.amazonaws.com&region=eu-central-1"),
        ("?endpoint=http://h:9000", "?endpoint=https://h:9000"),
        ("?endpoint=http://127.0.0.1:9000", "?endpoint=http://localhost:9000"),
        ("?endpoint=http://[::1]:9000", "?endpoint=http://localhost:9000"),
    ],
)
def test_addresses_that_surely_lead_to_one_bucket_are_one_place(one: str, other: str) -> None:
    with pytest.raises(NodeConfigError, match="share a bucket"):
        NodeRegistry({"a": f"s3://bucket{one}", "b": f"s3://bucket{other}"})
    assert len(NodeRegistry({"a": f"s3://bucket{one}", "b": f"s3://other-bucket{other}"})) == 2


def test_an_endpoint_that_is_no_url_is_refused_by_its_node() -> None:
    with pytest.raises(NodeConfigError, match="node a: s3://bucket has an endpoint that is no URL"):
        NodeRegistry({"a": "s3://bucket?endpoint=http://[::1"})


def test_two_names_for_one_bucket_are_refused() -> None:
    with pytest.raises(NodeConfigError, match="share a bucket"):
        NodeRegistry({"a": "s3://bucket", "b": "s3://bucket/prefix"})
    for other in ("https://s3.local/", "https://S3.Local", "https://s3.local:443", "HTTPS://s3.local"):
        with pytest.raises(NodeConfigError, match="share a bucket"):
            NodeRegistry({"a": "s3://bucket?endpoint=https://s3.local", "b": f"s3://bucket?endpoint={other}"})
    for other in ("https://s3.local:8443", "http://s3.local", "https://s3.local/path"):
        NodeRegistry({"a": "s3://bucket?endpoint=https://s3.local", "b": f"s3://bucket?endpoint={other}"})
    assert len(NodeRegistry({"a": "s3://bucket/x", "b": "s3://bucket/y", "c": "s3://other"})) == 3


def test_silent_nodes_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    (tmp_path / "file").touch()
    registry = NodeRegistry(
        {
            "n1": f"file://{tmp_path}/n1",
            "gone": f"file://{tmp_path}/gone",
            "file": f"file://{tmp_path}/file",
            "m": "memory://",
        }
    )
    silent = registry.unreachable()
    assert set(silent) == {"gone", "file"}
    assert "is its disk mounted?" in silent["gone"]


def test_only_nodes_that_neither_wait_for_a_network_nor_for_a_disk_are_quick(tmp_path: Path) -> None:
    registry = NodeRegistry(
        {
            "file": f"file://{tmp_path}/a",
            "durable": f"file://{tmp_path}/b?durable=true",
            "m": "memory://",
        }
    )
    assert [registry.is_quick(name) for name in ("File", "durable", "m", "unknown")] == [
        True,
        False,
        False,
        True,
    ]


def test_an_s3_node_is_made_without_contacting_anybody() -> None:
    registry = NodeRegistry({"s": "s3://bucket/p?endpoint=http://127.0.0.1:1&region=us-east-1"})
    assert isinstance(registry.node("s"), ObjectNode)


def test_the_url_decides_about_durability_before_the_registry_does(tmp_path: Path) -> None:
    urls = {
        "yes": f"file://{tmp_path}/a?durable=true",
        "no": f"file://{tmp_path}/b?durable=false",
        "open": f"file://{tmp_path}/c",
    }
    lazy, strict = NodeRegistry(urls), NodeRegistry(urls, durable=True)
    assert [lazy.is_quick(name) for name in urls] == [False, True, True]
    assert [strict.is_quick(name) for name in urls] == [False, True, False]


VARIABLES = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of somebody who refuses everything, and what was asked for there."""
    paths: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            if "/nowhere" not in self.path:
                self.send_error(403)
                return
            body = b"<Error><Code>NoSuchBucket</Code><Message>There is none</Message></Error>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """It says nothing."""

    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_node_is_where_its_url_says_whatever_the_environment_names(
    asked: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """With another address, or without the bucket in what is asked for, a copy would land in somebody else's bucket."""
    address, paths = asked
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    node = NodeRegistry({"s": f"s3://bucket?endpoint={address}&region=us-east-1"}).node("s")
    with pytest.raises(NodeUnreachable):
        node.check()
    assert paths
    assert all(path.startswith("/bucket") for path in paths), paths


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_node_without_an_endpoint_is_refused_while_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    NodeRegistry({"s": "s3://bucket?region=us-east-1"})
    monkeypatch.setenv(variable, "https://s3.local")
    with pytest.raises(
        NodeConfigError, match=f"node s: s3://bucket names no endpoint, and {variable} is set"
    ):
        NodeRegistry({"s": "s3://bucket?region=us-east-1"})
    NodeRegistry({"s": "s3://bucket?endpoint=https://s3.local"})


def test_without_a_bucket_nobody_knows_what_is_missing(asked: tuple[str, list[str]]) -> None:
    """S3 answers as it does for a missing object, and whoever looks for one would go on to an older copy elsewhere."""
    address, _ = asked
    registry = NodeRegistry(
        {name: f"s3://{name}?endpoint={address}&region=us-east-1" for name in ("nowhere", "unlisted")}
    )
    with pytest.raises(NodeUnreachable, match="node nowhere: its bucket does not exist"):
        registry.node("nowhere").open(object_key("b/k"))
    with pytest.raises(ObjectMissing):
        registry.node("unlisted").open(object_key("b/k"))
