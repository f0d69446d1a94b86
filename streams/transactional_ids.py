"""Under which names a deployment writes transactions. Each is one writer's at a time: who takes it fences who had it."""

from __future__ import annotations

from schemas.topics import Topics


def of_worker(topics: Topics, name: str) -> str:
    """A worker's: outcomes and offsets."""
    return f"{topics.prefix}worker.{name}"


def of_redrive(topics: Topics) -> str:
    """Whoever begins lives anew."""
    return f"{topics.prefix}dlq-redrive"


def of_provisioning(topics: Topics) -> str:
    """Whoever makes topics and the group's first offsets."""
    return f"{topics.prefix}provision"


def is_ours(topics: Topics, transactional_id: str) -> bool:
    """Whether it is one of this deployment; another one's prefix may begin with ours."""
    others = (of_redrive(topics), of_provisioning(topics))
    return transactional_id in others or transactional_id.startswith(of_worker(topics, ""))
