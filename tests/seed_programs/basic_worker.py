"""A worker in a program's own event loop: configure, start, keep running, shut down."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta

from workers import WorkerConfig, WorkerManager


async def main() -> None:
    # Create worker configuration
    config = WorkerConfig(
        worker_id="worker-1",
        max_concurrent_jobs=10,
        job_timeout=timedelta(seconds=300),
        retry_limit=3,
        cleanup_interval=timedelta(seconds=60),
    )

    # Create worker manager
    worker_manager = WorkerManager(config)

    # Start worker processing
    await worker_manager.start()
    print("started", flush=True)

    # Keep running
    ctrl_c = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ctrl_c.set)
    await ctrl_c.wait()
    await worker_manager.shutdown()
    print("shut down", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
