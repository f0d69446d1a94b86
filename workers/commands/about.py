"""``version``, ``config show`` and ``schemas``: what this installation is and how it is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workers.console import FAILED, counted, directory_named, emit, errors_in_one_line, say_error, table

config_app = typer.Typer(
    help="""Settings: what is set, by what, and what else can be.

    \b
    Examples:
      rustfs-workers config show
      KAFKA_BOOTSTRAP_SERVERS=10.0.0.7:9092 rustfs-workers config show --json
    """,
    no_args_is_help=True,
)
schemas_app = typer.Typer(
    help="""Avro schemas of jobs, statuses and reports.

    \b
    Examples:
      rustfs-workers schemas export ./avro
      rustfs-workers schemas check
    """,
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line; the summary last.")]


def version(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Print versions.

    \b
    Examples:
      rustfs-workers version
      rustfs-workers version --json
    """
    import platform
    from importlib.metadata import version as of

    versions = {
        "rustfs-workers": of("rustfs-workers"),
        "python": platform.python_version(),
        "confluent-kafka": of("confluent-kafka"),
    }
    if as_json:
        emit(versions)
    else:
        for name, number in versions.items():
            typer.echo(f"{name} {number}")


@config_app.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Show every setting, and where its value comes from.

    Secrets are masked. Settings come from the environment (RUSTFS_WORKERS_ and the name in capitals) and from
    rustfs-workers.toml, in the working directory or in the user's configuration directory.

    \b
    Examples:
      rustfs-workers config show
      rustfs-workers config show --json
    """
    with errors_in_one_line():
        from streams.settings import describe, load_settings
        from streams.settings_sources import settings_file
        from workers.storage.nodes import NodeRegistry

        settings = load_settings()
        NodeRegistry(settings.nodes)  # what a worker would refuse is not shown as if it were right
        rows = [row._asdict() for row in describe(settings)]
        if as_json:
            for row in rows:
                emit(row)
            emit({"settings": len(rows), "file": settings_file()})
        else:
            table(rows, ["name", "value", "source", "help"])


@schemas_app.command("export")
def schemas_export(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", parser=directory_named, help="Where to; made if it is not there."),
    ],
    as_json: AsJson = False,
) -> None:
    """Write the built-in schemas, for producers in other languages.

    \b
    Examples:
      rustfs-workers schemas export ./avro
      rustfs-workers schemas export ./avro --json
    """
    with errors_in_one_line():
        from importlib.resources import files

        directory.mkdir(parents=True, exist_ok=True)
        built_in = files("schemas").joinpath("avro").iterdir()
        wanted = sorted(
            (file for file in built_in if file.name.endswith(".avsc")), key=lambda file: file.name
        )
        for file in wanted:
            directory.joinpath(file.name).write_text(file.read_text("utf-8"), "utf-8")
            if as_json:
                emit({"file": directory / file.name})
            else:
                typer.echo(str(directory / file.name))
        if as_json:
            emit({"files": len(wanted)})


@schemas_app.command("check")
def schemas_check(
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Module that declares job types; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that job types and their schemas agree.

    Looks at the built-in job types and at those that the imported modules declare. Exit code 1 if one is wrong.

    \b
    Examples:
      rustfs-workers schemas check
      rustfs-workers schemas check --import my_package.jobs --json
    """
    with errors_in_one_line():
        import workers.handlers.replication  # noqa: F401 - declares the built-in job types
        from schemas.errors import JobTypeError
        from schemas.job import declared_job_types
        from schemas.jobtype import JobType, derive_schema, job_type
        from workers.imports import import_modules

        import_modules(imports or [])
        wrong, declared = 0, declared_job_types()
        for name, cls in sorted(declared.items()):
            problem = None
            try:
                kind: JobType = job_type(cls)
                derived = [(f["name"], _plain(f["type"])) for f in derive_schema(cls)["fields"]]
                stored = [(f["name"], _plain(f["type"])) for f in kind.wire.schema["fields"]]
                if derived != stored:
                    problem = f"the class and {cls.schema_file}.avsc differ"
            except JobTypeError as error:
                problem = str(error)
            wrong += problem is not None
            if as_json:
                emit({"type": name, "ok": problem is None, "problem": problem})
            else:
                typer.echo(f"{name}: {problem or 'ok'}")
        if as_json:
            emit({"types": len(declared), "wrong": wrong})
        if wrong:
            say_error(f"{counted(wrong, 'job type')} without a usable schema")
            raise SystemExit(FAILED)


def _plain(schema: Any) -> Any:
    """A type without names that only the deriving library gives to arrays and maps."""
    match schema:
        case list():
            return [_plain(branch) for branch in schema]
        case {"type": "array" | "map"}:
            return {key: _plain(value) for key, value in schema.items() if key not in ("name", "doc")}
        case _:
            return schema
