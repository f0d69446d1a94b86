"""Everything that can be set, in one typed place.

In:  the environment, a file ``rustfs-workers.toml``, values given in code. Out: a frozen ``Settings``, or a
``SettingsError`` that names the variable. A value given in code wins over the environment, which wins over
the file.

The environment name of a setting is ``RUSTFS_WORKERS_`` and its name in capitals; parts of a nested one are
joined by ``__``. The names that Kafka users know (``KAFKA_BOOTSTRAP_SERVERS``, …) work as they are.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableValue
from pydantic_settings.sources import InitSettingsSource

from schemas.errors import KafkaUnreachable, PipelineError, SettingsError
from schemas.topics import DEFAULT_PARTITIONS, DEFAULT_PREFIX, JobPriority, Topics
from streams.settings_shown import shown
from streams.settings_sources import (
    APP_NAME,
    CUSTOMARY_NAMES,
    ENV_PREFIX,
    Known,
    find_sources,
    nearest,
    not_json,
    read_file,
    refuse_unknown,
    settings_file,
    with_lower_case_names,
)

#: Where the embedded broker writes its address, below ``data_dir``.
ADDRESS_FILE: Final = Path("kafka", "address")

#: What a worker may be called, in the settings and in code: file names and transactional ids are made of it.
WORKER_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_WORKER_ID: Final = 64
#: Of a host's name in the default worker id: `up` and tests add to it.
_LONGEST_HOST: Final = 48
#: Seconds that brokers take for a session, as they come.
LEAST_SESSION_S: Final = 3
LONGEST_SESSION_S: Final = 1800

_DAY_S: Final = 86_400
_PORTS: Final = range(1, 65_536)
#: Characters of a path that an error repeats; private keys have more.
_LONGEST_SAID: Final = 255
#: Kafka's own, where an address has none.
_ANY_PORT: Final = 9092


def _no_truth(value: object) -> object:
    """Python counts True as 1; a file that says ``partitions = true`` means something else."""
    if isinstance(value, bool):
        raise ValueError("should not be true or false")  # noqa: TRY004 - what pydantic makes a message of
    return value


def _file_that_is_there(path: Path) -> Path:
    """What the variable holds is said only if it looks like a path: a key itself may stand there, by mistake."""
    try:
        if path.is_file():
            return path
    except OSError:  # it is too long for a path
        pass
    if (text := str(path)).startswith("-----") or not text.isprintable() or len(text) > _LONGEST_SAID:
        raise ValueError("names no file; it takes a path, not what stands in the file")
    raise ValueError(f"names no file: {text}")


ExistingFile = Annotated[Path, AfterValidator(_file_that_is_there)]
NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
# Without control characters: Python's URL parser leaves out line breaks, and another directory would be meant.
NodeUrl = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://[^[:cntrl:]]*$", max_length=2048)]
# Ten years: what comes after that no clock or timer takes.
Seconds = Annotated[float, Field(gt=0, le=3650 * _DAY_S, allow_inf_nan=False)]
Weight = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_no_truth)]


class NoKafkaAddress(KafkaUnreachable):
    """No address is set, and no embedded broker has left one."""

    def __init__(self, address_file: Path) -> None:
        self.bootstrap_servers = ""
        self.address_file = address_file
        PipelineError.__init__(
            self,
            f"no Kafka is known: KAFKA_BOOTSTRAP_SERVERS is not set and there is no {address_file}; "
            "start one with `rustfs-workers up`, or set KAFKA_BOOTSTRAP_SERVERS",
        )


class PriorityWeights(BaseModel):
    """How often each priority is served while all have jobs waiting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    critical: Weight = 8
    high: Weight = 4
    normal: Weight = 2
    low: Weight = 1

    def by_priority(self) -> dict[JobPriority, int]:
        """The weights as a mapping, most urgent first."""
        return {priority: getattr(self, priority.value) for priority in JobPriority}


def default_worker_id() -> str:
    """The host's name, in characters that a topic's key and a file name can hold.

    All of it: two hosts may differ in their domain alone, and two pods in the last characters of a long name. What cannot be kept
    leaves a hash, for two workers of one name would stop each other.
    """
    host = platform.node()
    name = re.sub(r"[^A-Za-z0-9._-]", "-", host).strip("-_.")
    if name == host and 0 < len(name) <= _LONGEST_HOST:
        return name
    digest = hashlib.sha256(host.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name[: _LONGEST_HOST - len(digest) - 1] or 'worker'}-{digest}"


def _default_data_dir() -> Path:
    try:
        return platformdirs.user_data_path(APP_NAME)
    except RuntimeError as error:
        raise SettingsError(
            f"this user has no home directory for data_dir to be in; set {ENV_PREFIX}DATA_DIR or HOME"
        ) from error


class Settings(BaseSettings):
    """All settings. Frozen: a process reads them once, at its start, and hands them on.

    ``load_settings`` is the way to make one; the constructor itself raises pydantic's errors.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        # A node's name may hold "__": only the first one separates.
        env_nested_max_split=1,
        # `KAFKA_BOOTSTRAP_SERVERS=` in a compose file means "not set".
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    kafka_bootstrap_servers: str | None = Field(
        default=None,
        description="Kafka's addresses, host:port joined by commas; none: the embedded broker that runs",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to talk to Kafka: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="how to log in: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    kafka_sasl_username: str | None = Field(default=None, description="name to log in with")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="password to log in with")
    kafka_ssl_ca_location: ExistingFile | None = Field(
        default=None, description="file of the certificates that sign the brokers' ones; none: the system's"
    )
    kafka_ssl_certificate_location: ExistingFile | None = Field(
        default=None, description="file of our own certificate (PEM)"
    )
    kafka_ssl_key_location: ExistingFile | None = Field(
        default=None, description="file of our own private key (PEM)"
    )
    kafka_ssl_key_password: SecretStr | None = Field(
        default=None, description="password of our own private key"
    )
    schema_registry_url: str | None = Field(
        default=None, description="a Confluent schema registry; none: schemas travel on the topic `schemas`"
    )
    topic_prefix: str = Field(
        default=DEFAULT_PREFIX,
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=100,
        description="what all topic names begin with; another prefix is another deployment",
    )
    partitions: int = Field(
        default=DEFAULT_PARTITIONS,
        ge=1,
        le=1000,
        description="partitions of every job, retry, dead letter and status topic; never changed in place",
    )
    replication_factor: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="copies of every topic; none: 3 where there are three brokers, else 1",
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="directory of the embedded Kafka and of local views"
    )
    nodes: dict[NodeName, NodeUrl] = Field(
        default_factory=dict,
        description="storage nodes, name = URL (file:///dir, s3://bucket?…, memory://); names in lower case",
    )
    worker_id: str = Field(
        default_factory=default_worker_id,
        pattern=WORKER_ID,
        max_length=LONGEST_WORKER_ID,
        description="name of a worker, the same after a restart, different from every other worker's",
    )
    max_concurrent_jobs: int = Field(
        default=64, ge=1, le=10_000, description="jobs that one process runs at a time"
    )
    process_pool_size: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, le=1000, description="processes for CPU-bound jobs"
    )
    sandbox_size: int = Field(
        default=8,
        ge=0,
        le=1000,
        description="processes for jobs that may kill, unfinished at two deaths of their worker; 0: they run alone in the worker",
    )
    job_timeout_s: Seconds = Field(
        default=300.0, description="seconds that one run may take, unless its type says otherwise"
    )
    retry_limit: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="how often a failed job runs again, unless the job or its type says otherwise",
    )
    cleanup_interval_s: Seconds = Field(
        default=60.0, description="reserved: seconds between two rounds of housekeeping; without effect yet"
    )
    tick_ms: int = Field(
        default=20, ge=1, le=1000, description="milliseconds between two transactions of a worker"
    )
    session_timeout_s: float = Field(
        default=45.0,
        ge=LEAST_SESSION_S,
        le=LONGEST_SESSION_S,
        description="seconds after which Kafka gives up a silent worker, where the broker does not tell",
    )
    lost_worker_wait_s: Seconds = Field(
        default=30.0,
        description="seconds that a job whose worker was lost while it ran alone waits for a sign of life of that worker",
    )
    drain_timeout_s: Seconds = Field(default=30.0, description="seconds that running jobs get after SIGTERM")
    revoke_timeout_s: Seconds = Field(
        default=1.0,
        description="seconds that running jobs get when their partition moves, if they may end in that time",
    )
    buffer_high: int = Field(
        default=2000, ge=1, le=1_000_000, description="waiting jobs of one priority at which fetching pauses"
    )
    buffer_low: int = Field(
        default=1000, ge=0, le=1_000_000, description="waiting jobs of one priority at which fetching goes on"
    )
    strict_priorities: bool = Field(
        default=False, description="serve a priority only while all higher ones are empty"
    )
    priority_weights: PriorityWeights = Field(
        default_factory=PriorityWeights,
        description="how often each priority is served while all have jobs waiting",
    )
    snooze_limit_s: Seconds = Field(
        default=7.0 * _DAY_S, description="seconds since its first snooze for which a job may be snoozed"
    )
    max_payload_bytes: int = Field(
        default=262_144, ge=1024, le=900_000, description="largest job that is accepted, in bytes as encoded"
    )
    max_delay_days: int = Field(
        default=400, ge=0, le=3650, description="longest delay that is accepted, in days"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged: debug, info, warning or error"
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="console for people, json for programs"
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def topics(self) -> Topics:
        """The topic names of this deployment."""
        return Topics(self.topic_prefix)

    def bootstrap_servers(self) -> str:
        """Where Kafka is: the setting, else the address that the embedded broker left.

        Raises:
            NoKafkaAddress: neither is there. SettingsError: an embedded broker does not speak what is set.
        """
        if self.kafka_bootstrap_servers:
            return self.kafka_bootstrap_servers
        address_file = self.data_dir / ADDRESS_FILE
        try:
            address = address_file.read_text("utf-8").strip()
        except PermissionError as error:
            raise SettingsError(
                f"{address_file} may not be read ({error.strerror}): it is another user's Kafka; set KAFKA_BOOTSTRAP_SERVERS to it, "
                f"or {ENV_PREFIX}DATA_DIR to a directory of your own"
            ) from error
        except (OSError, UnicodeDecodeError):
            address = ""
        if not address:
            raise NoKafkaAddress(address_file)
        self.check_for_embedded()
        return address

    def check_for_embedded(self) -> None:
        """Whether a Kafka of our own can be spoken to.

        Raises:
            SettingsError: not with these settings.
        """
        if self.kafka_security_protocol != "PLAINTEXT":
            raise SettingsError(
                f"KAFKA_SECURITY_PROTOCOL is {self.kafka_security_protocol}, and a Kafka of our own speaks PLAINTEXT: "
                "set KAFKA_BOOTSTRAP_SERVERS to the cluster that it is meant for, or unset it"
            )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_where_it_belongs(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name == "strict_priorities" else _no_truth(value)

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = [part.strip() for part in value.split(",")]
        for part in parts:
            address = re.fullmatch(r"(?:[^\s:/]+|\[[0-9A-Fa-f:]+\])(?::(\d{1,5}))?", part)
            if address is None or int(address[1] or _ANY_PORT) not in _PORTS:
                raise ValueError(
                    "should be host:port, or several joined by commas, with ports from 1 to 65535"
                )
        return ",".join(parts)

    @field_validator("schema_registry_url")
    @classmethod
    def _registry(cls, value: str | None) -> str | None:
        for url in value.split(",") if value is not None else ():
            if not url.strip().startswith(("http://", "https://", "mock://")):
                raise ValueError("should begin with http://, https:// or mock://")
            try:
                parts = urlsplit(url.strip())
                usable = parts.scheme == "mock" or (bool(parts.hostname) and parts.port != 0)
            except ValueError:  # its text would quote what may be of a password
                usable = False
            if not usable:
                raise ValueError('should be like https://host:8081; write "/" in a password as %2F')
        return value

    @field_validator("kafka_security_protocol", "kafka_sasl_mechanism", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _whole_path(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("should be a path; this one holds a null character")
        try:
            return value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("names the home of a user who is not known here") from None

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.buffer_low >= self.buffer_high:
            raise ValueError(
                f"buffer_low ({self.buffer_low}) should be less than buffer_high ({self.buffer_high})"
            )
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(
                f"kafka_security_protocol is {self.kafka_security_protocol}: "
                "kafka_sasl_username and kafka_sasl_password should be set too"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - a .env file is not ours to read
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Given in code, then the environment, then the file."""
        assert isinstance(env_settings, EnvSettingsSource)  # noqa: S101 - pydantic-settings makes it one
        customary = {
            f"{ENV_PREFIX}{field}".lower(): env_settings.env_vars[name.lower()]
            for name, field in CUSTOMARY_NAMES.items()
            if env_settings.env_vars.get(name.lower())
        }
        env_settings.env_vars = {**customary, **env_settings.env_vars}
        nodes = f"{ENV_PREFIX}nodes".lower()
        if given := env_settings.env_vars.get(nodes):
            env_settings.env_vars = {**env_settings.env_vars, nodes: with_lower_case_names(given)}
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_file(settings_file()))


def load_settings(**given: Any) -> Settings:
    """Read everything once. Values given here win; None means "not given".

    Raises:
        SettingsError: names the variable (or the key and its file), what is wrong, and what it takes.
    """
    overrides = {name: value for name, value in given.items() if value is not None}
    path = settings_file()
    from_file = read_file(path)
    refuse_unknown(os.environ, from_file, path, _known())
    sources = find_sources(overrides, os.environ, from_file, path)
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_in_words(error, sources)) from None
    except (UnreadableValue, RecursionError):
        raise SettingsError(not_json(os.environ)) from None
    settings._sources.update(sources)
    return settings


def _known() -> Known:
    return Known(Settings.model_fields, PriorityWeights.model_fields)


class SettingRow(NamedTuple):
    """One line of ``config show``; secrets are masked."""

    name: str
    value: str
    default: str
    help: str
    source: str


def describe(settings: Settings) -> list[SettingRow]:
    """Every setting, with its value, default, help, and where the value came from."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        rows.append(
            SettingRow(
                name,
                shown(getattr(settings, name)),
                shown(default),
                field.description or "",
                settings._sources.get(name, "default"),
            )
        )
    return rows


#: Where pydantic speaks of Python.
_PLAINLY: Final = {"path_type": "should be a path", "extra_forbidden": "is not a setting"}


def _in_words(error: ValidationError, sources: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        message = message.removeprefix("Input ").removeprefix("String ")
        message = _PLAINLY.get(problem["type"], message)
        if not problem["loc"]:
            named = [
                sources[name]
                for name in Settings.model_fields
                if re.search(rf"\b{name}\b", message) and sources.get(name, "given") != "given"
            ]
            lines.append(message + (f" (set by {', '.join(named)})" if named else ""))
            continue
        name = str(problem["loc"][0])
        field = Settings.model_fields.get(name)
        if field is None:
            lines.append(f"{name} is not a setting{nearest(name, Settings.model_fields)}")
            continue
        inner = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        where = sources.get(inner) or (inner if inner != name else sources.get(name, name))
        lines.append(f"{inner if where == 'given' else where} {message} (it takes: {field.description})")
    return "; ".join(lines)
