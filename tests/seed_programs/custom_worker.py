"""A worker for one job type, with what it needs to do the work: it removes old files."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from workers import Job, JobQueue, JobResult, Worker, WorkerConfig, WorkerContext, WorkerManager


@dataclass
class CleanupJob(Job):
    job_type = "cleanup"
    target_path: str


class CleanupWorker(Worker):
    worker_type = "cleanup"

    def __init__(self, storage_path: str, max_file_age: timedelta) -> None:
        self.storage_path = storage_path
        self.max_file_age = max_file_age

    async def process_job(self, job: Job, context: WorkerContext) -> JobResult:
        match job.job_type:
            case "cleanup":
                if isinstance(job, CleanupJob):
                    return await self.execute_cleanup(job, context)
                return JobResult.Failed("Invalid job type for cleanup worker")
            case _:
                return JobResult.Skipped()

    async def health_check(self) -> bool:
        # Check if storage is accessible
        return Path(self.storage_path).exists()

    async def execute_cleanup(self, job: CleanupJob, context: WorkerContext) -> JobResult:
        print(f"Starting cleanup job for: {job.target_path}")
        try:
            cleaned_count = self.cleanup_old_files(job.target_path)
        except OSError as error:
            return JobResult.Failed(str(error))
        context.update_metrics("files_cleaned", cleaned_count)
        return JobResult.Success()

    def cleanup_old_files(self, path: str) -> int:
        cleaned_count = 0
        for file in Path(self.storage_path, path).iterdir():
            if time.time() - file.stat().st_mtime > self.max_file_age.total_seconds():
                file.unlink()
                cleaned_count += 1
        return cleaned_count


async def main(storage_path: str) -> None:
    worker = CleanupWorker(storage_path, timedelta(days=30))
    print(f"healthy: {await worker.health_check()}")
    print(f"healthy elsewhere: {await CleanupWorker('/no/such/storage', timedelta()).health_check()}")
    manager = WorkerManager(WorkerConfig(worker_id="cleaner"))
    manager.register(worker)
    async with manager, JobQueue.connect() as queue:
        for target_path in ("old", "missing"):
            job_id = await queue.schedule_job(CleanupJob(target_path), max_retries=0)
            job = await queue.wait(job_id, timedelta(seconds=60))
            print(f"{target_path}: {job.status.value} {dict(job.metrics)} {job.error or ''}".rstrip())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
