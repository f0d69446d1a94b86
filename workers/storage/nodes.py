"""The storage nodes of a deployment: from names and URLs in the settings to ``Node`` objects.

In:  ``{"n1": "file:///srv/n1", "archive": "s3://bucket?endpoint=https://s3.local&region=eu-central-1"}``.
Out: a ``NodeRegistry`` that makes each node when it is first asked for, and refuses two names for one place.

======================  ==============================================================================
``file:///dir``         a directory, absolute; ``?durable=true`` flushes every copy to the disk
``s3://bucket``         an S3 bucket, or ``s3://bucket/prefix``; ``?endpoint=URL``, ``?region=NAME``
``memory://``           forgotten with the process; for tests
======================  ==============================================================================

Credentials never stand in a URL: the S3 client takes ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` (or
the machine's role) from the environment. An address of the service does stand there: one from the environment
(``AWS_ENDPOINT_URL``) would be every node's, so a node without its own is refused while that is set.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from streams.user_info import USER_INFO
from workers.redaction import redact
from workers.storage.errors import NodeConfigError, StorageError, UnknownNode
from workers.storage.file_node import FileNode
from workers.storage.node import Node
from workers.storage.object_node import ObjectNode

#: Longest name of a node, in bytes.
NAME_LIMIT: Final = 64
NAME: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{NAME_LIMIT - 1}}}")

_CONNECT_TIMEOUT: Final = timedelta(seconds=5)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_AMAZON: Final = ".amazonaws.com"
_LOOPBACK: Final = ("127.0.0.1", "::1")
#: From which the S3 client takes an endpoint.
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_REQUEST_TIMEOUT: Final = timedelta(seconds=60)
_RETRY_TIMEOUT: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class NodeUrl:
    """A node's URL, understood.

    Attributes:
        scheme: "file", "s3" or "memory".
        root: directory of a file node.
        bucket: of an S3 node.
        prefix: what comes before every name in that bucket.
        endpoint: address of the S3 service; None is the provider's own.
        region: of the bucket, where one is needed.
        durable: whether a file node flushes copies to the disk; None leaves it to the registry.
    """

    scheme: str
    root: Path | None = None
    bucket: str = ""
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    durable: bool | None = None


def parse_node_url(name: str, url: str) -> NodeUrl:
    """Read a node's URL. Pure.

    Raises:
        NodeConfigError: it cannot be used; the message says why and shows no credentials.
    """
    if USER_INFO.match(url, url.find("://") + 3):
        raise _with_credentials(name, url)
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # Its message would quote the part, which may be a password.
        raise _wrong(name, url, "is no URL; write option=value after the ?, joined by &") from None
    options = dict(given)
    if len(options) < len(given):
        raise _wrong(name, url, "has an option twice")
    if "" in options.values():
        raise _wrong(name, url, "has an option without a value")
    if parts.fragment:
        raise _wrong(name, url, 'has a fragment; write "#" in a path as %23')
    if "%40" in parts.netloc:
        raise _with_credentials(name, url)
    match parts.scheme:
        case "file":
            _only(name, url, options, {"durable"})
            return _file_url(name, url, parts, options)
        case "s3":
            _only(name, url, options, {"endpoint", "region"})
            return _s3_url(name, url, parts, options)
        case "memory":
            _only(name, url, options, set())
            return NodeUrl("memory")
        case _:
            raise _wrong(name, url, "has an unknown scheme; use file://, s3:// or memory://")


class NodeRegistry:
    """All nodes by name. Safe from any thread.

    Args:
        nodes: name (any case; kept in lower case) to URL. The order is the order in which nodes are asked for
            an object.
        durable: whether file nodes flush every copy to the disk before it counts, where their URL does not
        say.

    Raises:
        NodeConfigError: a name or URL cannot be used, or two names mean the same place.
    """

    def __init__(self, nodes: Mapping[str, str], *, durable: bool = False) -> None:
        self._durable = durable
        self._urls: dict[str, NodeUrl] = {}
        self._made: dict[str, Node] = {}
        self._lock = threading.Lock()
        for given, url in nodes.items():
            name = given.lower()
            if not NAME.fullmatch(name):
                raise NodeConfigError(
                    f"node name {given[:80]!r}: use letters, digits, '.', '_' and '-', at most {NAME_LIMIT}, "
                    "a letter or digit first"
                )
            if name in self._urls:
                raise NodeConfigError(f"node {name} is configured twice: names differ in case only")
            self._urls[name] = parse_node_url(name, url)
            _refuse_foreign_endpoint(name, url, self._urls[name])
        _refuse_shared_places(self._urls)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._urls

    def __iter__(self) -> Iterator[str]:
        return iter(self._urls)

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names, lower case, in the order of the settings."""
        return tuple(self._urls)

    def node(self, name: str) -> Node:
        """The node of that name, in any case. Nothing is contacted.

        Raises:
            UnknownNode: no such node is configured.
        """
        name = name.lower()
        made = self._made.get(name)
        if made is not None:
            return made
        url = self._urls.get(name)
        if url is None:
            raise UnknownNode(name, self._urls)
        with self._lock:
            return self._made.setdefault(name, self._make(name, url))

    def is_quick(self, name: str) -> bool:
        """Whether calls to a node take microseconds; also True for an unknown one, which fails at once."""
        name = name.lower()
        return name not in self._urls or self.node(name).waits_for == "nothing"

    def unreachable(self) -> dict[str, str]:
        """Every node that gives no sign of life, with the reason. Asks each in turn; call it in a thread."""
        silent = {}
        for name in self._urls:
            try:
                self.node(name).check()
            except StorageError as error:
                silent[name] = str(error)
        return silent

    def _make(self, name: str, url: NodeUrl) -> Node:
        match url:
            case NodeUrl(scheme="file", root=Path() as root):
                return FileNode(name, root, durable=self._durable if url.durable is None else url.durable)
            case NodeUrl(scheme="s3"):
                return _s3_node(name, url)
            case _:
                from obstore.store import MemoryStore

                return ObjectNode(name, MemoryStore())


def _file_url(name: str, url: str, parts: SplitResult, options: dict[str, str]) -> NodeUrl:
    if parts.netloc not in {"", "localhost"}:
        raise _wrong(
            name, url, f"names the host {parts.netloc!r}; write three slashes: file:///absolute/path"
        )
    try:
        root = unquote(parts.path, errors="strict")
        root.encode()
    except ValueError:
        # Keys and messages are UTF-8: nobody could be told of a file there.
        raise _wrong(name, url, "has a path that is no UTF-8") from None
    if "\0" in root or not root.startswith("/") or os.path.normpath(root) == "/":
        raise _wrong(name, url, "needs the absolute path of a directory other than /")
    match options.get("durable"):
        case None:
            durable = None
        case "true" | "1":
            durable = True
        case "false" | "0":
            durable = False
        case other:
            raise _wrong(name, url, f"has durable={other!r}; use true or false")
    return NodeUrl("file", root=Path(os.path.normpath(root)), durable=durable)


def _s3_url(name: str, url: str, parts: SplitResult, options: dict[str, str]) -> NodeUrl:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", parts.netloc):
        raise _wrong(name, url, "needs a bucket: s3://bucket?endpoint=…&region=…")
    prefix = unquote(parts.path).strip("/")
    if any(part in {"", ".", ".."} for part in prefix.split("/")) and prefix:
        raise _wrong(name, url, "has a prefix with an empty, '.' or '..' part")
    endpoint = options.get("endpoint")
    if endpoint is not None:
        try:
            target = urlsplit(endpoint)
        except ValueError:
            raise _wrong(name, url, "has an endpoint that is no URL") from None
        if target.scheme not in {"http", "https"} or not target.hostname or USER_INFO.search(endpoint):
            raise _wrong(name, url, "needs an endpoint like https://host:port, without credentials")
        try:
            endpoint = _as_one_spells_it(target)
        except ValueError:
            raise _wrong(name, url, "has an endpoint whose port is no number up to 65535") from None
    return NodeUrl("s3", bucket=parts.netloc, prefix=prefix, endpoint=endpoint, region=options.get("region"))


def _as_one_spells_it(endpoint: SplitResult) -> str:
    """The same for all spellings of a place: two names for it would count one copy twice.

    Raises:
        ValueError: the port is none.
    """
    host = (endpoint.hostname or "").rstrip(".")
    port = endpoint.port
    where = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS[endpoint.scheme]:
        where = f"{where}:{port}"
    return f"{endpoint.scheme}://{where}{endpoint.path.rstrip('/')}"


def _s3_node(name: str, url: NodeUrl) -> ObjectNode:
    from obstore.store import S3Store

    options: dict[str, str] = {}
    if url.endpoint is not None:
        # By the second name as well: as AWS_ENDPOINT_URL_S3 in the environment it would have precedence over the first.
        options["endpoint"] = options["aws_endpoint_url_s3"] = url.endpoint
    if url.region is not None:
        options["region"] = url.region
    store = S3Store(
        url.bucket,
        prefix=url.prefix or None,
        virtual_hosted_style_request=url.endpoint is None,
        # The server compares every upload with the hash that was taken before it was sent.
        checksum_algorithm="SHA256",
        client_options={
            "allow_http": bool(url.endpoint and url.endpoint.startswith("http://")),
            "connect_timeout": _CONNECT_TIMEOUT,
            "timeout": _REQUEST_TIMEOUT,
        },
        # The job itself is retried, with growing delays; here only a lost connection is smoothed over.
        retry_config={"max_retries": 2, "retry_timeout": _RETRY_TIMEOUT},
        **options,  # type: ignore[arg-type]
    )
    return ObjectNode(name, store)


def _refuse_foreign_endpoint(name: str, url: str, node: NodeUrl) -> None:
    """The client would take it, and leave the bucket out of what it asks for: an object named b/k would go to the bucket b."""
    if node.scheme != "s3" or node.endpoint is not None:
        return
    for variable in _ENDPOINT_VARIABLES:
        if os.environ.get(variable):
            raise _wrong(
                name,
                url,
                f"names no endpoint, and {variable} is set, which would be taken for it; write s3://bucket?endpoint=https://…, or "
                "unset that",
            )


def _refuse_shared_places(urls: Mapping[str, NodeUrl]) -> None:
    """Two names for one place would count one copy twice."""
    roots: dict[str, str] = {}
    buckets: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, url in urls.items():
        if url.root is not None:
            real = os.path.realpath(url.root)
            for other, root in roots.items():
                if _overlap(real, root):
                    raise NodeConfigError(
                        f"nodes {other} and {name} share a directory ({root}, {real}): "
                        "one copy would count as two"
                    )
            roots[name] = real
        elif url.scheme == "s3":
            siblings = buckets.setdefault((_host_of(url.endpoint), url.bucket), [])
            for other, prefix in siblings:
                if _overlap("/" + url.prefix, "/" + prefix):
                    raise NodeConfigError(
                        f"nodes {other} and {name} share a bucket: one copy would count as two"
                    )
            siblings.append((name, url.prefix))


def _host_of(endpoint: str | None) -> str:
    """Where an S3 service is, the same for addresses that surely lead to the same one."""
    if endpoint is None:
        return _AMAZON
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if host.endswith(_AMAZON):
        return _AMAZON  # the names of its buckets are the same everywhere
    return f"{'localhost' if host in _LOOPBACK else host}:{parts.port or _DEFAULT_PORTS[parts.scheme]}{parts.path}"


def _overlap(one: str, other: str) -> bool:
    one, other = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return one.startswith(other) or other.startswith(one)


def _only(name: str, url: str, options: Mapping[str, str], allowed: set[str]) -> None:
    unknown = sorted(set(options) - allowed)
    if unknown:
        known = f"known here: {', '.join(sorted(allowed))}" if allowed else "none are known here"
        secret = any(re.search(r"(?i)secret|key|token|password", option) for option in unknown)
        hint = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead" if secret else ""
        raise _wrong(name, url, f"has unknown options: {', '.join(unknown)} ({known}){hint}")


def _with_credentials(name: str, url: str) -> NodeConfigError:
    return _wrong(name, url, "holds credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")


def _wrong(name: str, url: str, why: str) -> NodeConfigError:
    # Without parameters and fragment: they may hold what somebody took for the place of a password.
    shown = redact(re.split("[?#;]", USER_INFO.sub("***@", url), maxsplit=1)[0])[:200]
    return NodeConfigError(f"node {name}: {shown} {why}")
