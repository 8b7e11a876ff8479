"""Runs a server until it is told to end; what runs by then is finished first."""

from __future__ import annotations

import threading

import uvicorn

from dialect.server.app import Server

GRACE_S = 30  # to finish what runs when the process is told to end


def run(server: Server, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C; after that requests that run have GRACE_S seconds. Raises
    ServingError where the engine ended before."""
    config = uvicorn.Config(
        server.app(),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    running = uvicorn.Server(config)

    def end() -> None:
        server.engine.driver.thread.join()
        running.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    running.run()
    server.engine.follow()
