"""A job type that does its own work, scheduled with high priority, and run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from workers import Job, JobBuilder, JobPriority, JobQueue, WorkerManager


@dataclass
class ReplicationJob(Job):
    source_path: str
    target_nodes: list[str]
    replication_factor: int

    job_type = "replication"
    max_retries = 3

    async def execute(self) -> None:
        print(f"Starting replication job for: {self.source_path}")

        # Perform replication logic
        for node in self.target_nodes:
            await self.replicate_to_node(node)

        print("Replication job completed successfully")

    async def replicate_to_node(self, node: str) -> None:
        # Implementation for replicating data to a specific node
        print(f"Replicating {self.source_path} to node: {node}")
        await asyncio.sleep(0.01)  # Simulate work


async def schedule_replication_job() -> str:
    async with JobQueue.connect() as job_queue:
        # Create replication job
        job = ReplicationJob(
            source_path="/bucket/important-file.txt",
            target_nodes=["node-2", "node-3"],
            replication_factor=2,
        )

        # Schedule job with high priority
        job_id = await job_queue.schedule_job(
            job,
            JobPriority.HIGH,
            None,  # Execute immediately
        )
        print(f"Scheduled replication job with ID: {job_id}")
        return job_id


async def schedule_with_a_builder(job_queue: JobQueue) -> str:
    builder = (
        JobBuilder("replication")
        .field("source_path", "/bucket/built.txt")
        .field("target_nodes", ["node-4"])
        .field("replication_factor", 1)
        .priority(JobPriority.LOW)
    )
    return await job_queue.schedule_job(builder.build(), **builder.options)


async def main() -> None:
    job_id = await schedule_replication_job()
    async with WorkerManager().register(ReplicationJob), JobQueue.connect() as job_queue:
        for each in (job_id, await schedule_with_a_builder(job_queue)):
            job = await job_queue.wait(each, timedelta(seconds=60))
            print(f"{job.type} {job.priority.value} {job.status.value} {job.attempt}")


if __name__ == "__main__":
    asyncio.run(main())
