"""Look at the queue, retry what failed, and count."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from workers import Job, JobFilter, JobPriority, JobQueue, JobStatus, PermanentError, WorkerManager

repaired = False


@dataclass
class HealingJob(Job):
    job_type = "healing"
    object_path: str

    async def execute(self) -> None:
        if not repaired:
            raise PermanentError("the disk is not back yet")


async def job_queue_management(job_queue: JobQueue) -> None:
    # List pending jobs
    pending_jobs = await job_queue.list_jobs(
        JobFilter(status=JobStatus.PENDING, job_type=None, priority=None, limit=100)
    )
    print(f"Pending jobs: {len(pending_jobs)}")

    # Retry failed jobs
    failed_jobs = await job_queue.list_jobs(
        JobFilter(status=JobStatus.FAILED, job_type=None, priority=None, limit=50)
    )
    for job in failed_jobs:
        await job_queue.retry_job(job.id)
    print(f"Retried jobs: {len(failed_jobs)}")

    # Get job statistics
    stats = await job_queue.get_statistics()
    print(f"Job statistics: {stats.total} in all, {stats.by_priority[JobPriority.CRITICAL]} critical")


async def main() -> None:
    global repaired  # noqa: PLW0603 - the world outside of the job
    async with JobQueue.connect() as job_queue:
        ids = await job_queue.schedule_jobs(HealingJob(f"bucket/{n}") for n in range(3))
        ids.append(await job_queue.schedule_job(HealingJob("bucket/urgent"), JobPriority.CRITICAL))
        await job_queue_management(job_queue)

        async with WorkerManager().register(HealingJob):
            for job_id in ids:
                job = await job_queue.wait(job_id, timedelta(seconds=60))
                assert job.status is JobStatus.FAILED
            repaired = True
            await job_queue_management(job_queue)
            for job_id in ids:
                job = await job_queue.wait(job_id, timedelta(seconds=60))
                assert job.status is JobStatus.SUCCEEDED
                assert job.redrives == 1
        await job_queue_management(job_queue)


if __name__ == "__main__":
    asyncio.run(main())
