"""Where settings come from: the environment, a file, code; and what is misspelt there.

In:  variables, the content of the file. Out: what each setting was set by, or a ``SettingsError`` that names the variable or
the key.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import platformdirs

from schemas.errors import SettingsError

APP_NAME: Final = "rustfs-workers"
ENV_PREFIX: Final = "RUSTFS_WORKERS_"
FILE_NAME: Final = "rustfs-workers.toml"
#: Settings that also answer to a name without our prefix.
CUSTOMARY_NAMES: Final[Mapping[str, str]] = {
    name.upper(): name
    for name in (
        "kafka_bootstrap_servers",
        "kafka_security_protocol",
        "kafka_sasl_mechanism",
        "kafka_sasl_username",
        "kafka_sasl_password",
        "kafka_ssl_ca_location",
        "kafka_ssl_certificate_location",
        "kafka_ssl_key_location",
        "kafka_ssl_key_password",
        "schema_registry_url",
    )
}


class Known(NamedTuple):
    """What can be set."""

    fields: Collection[str]
    #: Parts of ``priority_weights``; those of ``nodes`` are anybody's choice.
    weights: Collection[str]

    def takes_part(self, field: str, part: str) -> bool:
        """Whether this setting has such a part."""
        return part in self.weights if field == "priority_weights" else field == "nodes" and part != ""

    def variables(self) -> set[str]:
        """The variables of all."""
        nested = {f"{ENV_PREFIX}PRIORITY_WEIGHTS__{name}".upper() for name in self.weights}
        return nested | {f"{ENV_PREFIX}{name}".upper() for name in self.fields}


def settings_file() -> Path | None:
    """The file that is read: in the working directory, else in the user's configuration directory.

    Raises:
        SettingsError: whether there is one may not be known.
    """
    directories: list[Path] = []
    with contextlib.suppress(RuntimeError):  # the user has no home directory
        directories.append(platformdirs.user_config_path(APP_NAME))
    with contextlib.suppress(FileNotFoundError):  # it has been removed under our feet
        directories.insert(0, Path.cwd())
    for directory in directories:
        path = directory / FILE_NAME
        try:
            # Whatever it is: a directory of that name, or a link to nothing, is what is left of settings that failed to appear.
            if path.is_symlink() or path.exists():
                return path
        except PermissionError as error:
            raise SettingsError(
                f"{directory} may not be searched for {FILE_NAME} ({error.strerror}): work in another directory, or let this user "
                "enter that one"
            ) from error
    return None


def read_file(path: Path | None) -> dict[str, Any]:
    """The file's content; nothing if there is none.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise SettingsError(f"{path} is no file that could be read; remove it, or put the settings there")
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # not TOML, not UTF-8, a number or a nesting too large for Python
        raise SettingsError(f"{path} cannot be read: {error}") from error


def refuse_unknown(
    environment: Mapping[str, str], from_file: Mapping[str, Any], path: Path | None, known: Known
) -> None:
    """A misspelt setting would silently do nothing.

    Raises:
        SettingsError: naming it and its nearest neighbours.
    """
    seen: dict[str, str] = {}
    for variable in environment:
        name = variable.upper()
        if name.startswith(ENV_PREFIX) or name in CUSTOMARY_NAMES:
            other = seen.setdefault(name, variable)
            if environment[other] != environment[variable]:
                raise SettingsError(f"{other} and {variable} differ in case only: unset one of them")
        if not name.startswith(ENV_PREFIX):
            continue
        field, _, rest = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if field not in known.fields or ("__" in name and not known.takes_part(field, rest)):
            raise SettingsError(f"{variable} is not a setting{nearest(name, known.variables())}")
    for key, value in from_file.items():
        if key not in known.fields:
            near = nearest(key.lower(), known.fields)
            raise SettingsError(f"{key} in {path} is not a setting{near}")
        if key == "priority_weights" and isinstance(value, dict):
            for part in value:
                if not known.takes_part(key, part):
                    near = nearest(part, known.weights)
                    raise SettingsError(f"{key}.{part} in {path} is not a setting{near}")


def find_sources(
    overrides: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, Any],
    path: Path | None,
) -> dict[str, str]:
    """Setting (and part of one, as ``nodes.n1``) to where its value comes from; defaults are left out."""
    sources = {key: f"{key} in {path}" for key in from_file}
    for key, value in from_file.items():
        if isinstance(value, dict):
            sources |= {f"{key}.{part}": f"{key}.{part} in {path}" for part in value}
    present = {name.upper(): name for name, value in environment.items() if value}
    for name, field in CUSTOMARY_NAMES.items():
        if name in present:
            sources[field] = present[name]
    for field in ("nodes", "priority_weights"):
        if whole := present.get(f"{ENV_PREFIX}{field}".upper()):
            parts = _json_object(environment[whole]) or {}
            sources |= {
                f"{field}.{name}": f"{whole}: {name}" for part in parts for name in (part, part.lower())
            }
    for name, variable in present.items():
        if name.startswith(ENV_PREFIX):
            field, _, part = name.removeprefix(ENV_PREFIX).lower().partition("__")
            sources[field] = variable
            if part:
                sources[f"{field}.{part}"] = variable
    for name in overrides:
        sources[name] = "given"
    return sources


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def with_lower_case_names(text: str) -> str:
    """A JSON object with its names in lower case; as it is, to be refused by name, if that makes two of them one."""
    nodes = _json_object(text) or {}
    lower = {name.lower(): url for name, url in nodes.items()}
    return json.dumps(lower) if nodes and len(lower) == len(nodes) else text


def not_json(environment: Mapping[str, str]) -> str:
    """Which variable it was that pydantic-settings could not read."""
    for variable, value in environment.items():
        field = variable.upper().removeprefix(ENV_PREFIX).lower()
        if field in ("nodes", "priority_weights"):
            try:
                json.loads(value)
            except (ValueError, RecursionError):
                example = f"{ENV_PREFIX}{field}__NAME".upper()
                return f"{variable} should be a JSON object; or set {example} for each"
    return "a variable of the environment is not JSON, but should be"


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, to be put behind the error."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else "; `rustfs-workers config show` lists them all"
