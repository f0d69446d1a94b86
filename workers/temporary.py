"""What is made for the length of one command, and is gone afterwards: a Kafka, a directory, a deployment on somebody else's Kafka.

In:  where it is to be. Out: context managers that end it, also for those who cannot wait.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.clients import admin_config
from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.registry import RegistryFailed, forget_subjects
from streams.settings import Settings
from workers.console import uninterrupted
from workers.progress import Progress

log = structlog.get_logger("rustfs_workers.temporary")


@contextmanager
def temporary_kafka(directory: Path, progress: Progress) -> Iterator[EmbeddedBroker]:
    """A Kafka for the length of one command. It has ended afterwards, also for those who cannot wait for it.

    Raises:
        EmbeddedKafkaError: it cannot be started.
    """
    broker = EmbeddedBroker(BrokerConfig(directory))
    progress("starting Kafka", 0, 1)
    try:
        broker.start()
        progress("starting Kafka", 1, 1)
        yield broker
    finally:
        with uninterrupted():
            broker.stop()


@uninterrupted()
def remove_directory(directory: Path) -> None:
    """Remove a directory that was made for one run."""
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def deleted_afterwards(settings: Settings) -> Iterator[None]:
    """For a deployment on somebody else's Kafka whose prefix was made up for one run.

    Raises:
        KafkaException: Kafka refuses, and nothing else has gone wrong before.
    """
    try:
        yield
    except BaseException:
        # Whatever ended the run says more than what follows from it.
        try:
            delete_deployment(settings)
        except KafkaException as error:
            log.warning("topics not deleted", prefix=settings.topic_prefix, error=str(error))
        raise
    delete_deployment(settings)


@contextmanager
def forgotten_afterwards(settings: Settings) -> Iterator[None]:
    """For a deployment on a Kafka of its own, which ends with it: a registry goes on, and the prefix was made up for one run."""
    try:
        yield
    finally:
        _delete_schemas(settings)


@uninterrupted()
def _delete_schemas(settings: Settings) -> None:
    """From the registry, if there is one. That it fails is no failure of the run.

    The subjects alone go: it still knows the schemas by their ids, so the dead letter of a demo that is kept can be read.
    """
    try:
        forget_subjects(settings)
    except RegistryFailed as error:
        log.warning("schemas not deleted from the registry", prefix=settings.topic_prefix, error=str(error))


@uninterrupted()
def delete_deployment(settings: Settings) -> None:
    """Delete every topic, group and registered schema of this deployment: for prefixes that were made up for one run.

    Raises:
        KafkaException: Kafka refuses.
    """
    _delete_schemas(settings)
    admin = AdminClient(admin_config(settings))
    names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.topic_prefix)]
    for deleted in (admin.delete_topics(names) if names else {}).values():
        deleted.result(30)
    listed = admin.list_consumer_groups().result(10).valid
    groups = [group.group_id for group in listed if group.group_id.startswith(settings.topic_prefix)]
    for group, deleted in (admin.delete_consumer_groups(groups) if groups else {}).items():
        try:
            deleted.result(30)
        except KafkaException as error:
            # A worker that was killed counts as a member until its session ends: an empty name stays behind.
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP:
                raise
            log.warning("group not deleted: it still counts a worker that was killed", group=group)
