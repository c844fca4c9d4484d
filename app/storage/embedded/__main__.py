"""`python -m app.storage.embedded <data folder>`: becomes its supervisor, detached; ends at once where there is one."""

import logging
import os
import sys
from pathlib import Path

from app.storage.embedded.locks import EXCLUSIVE, open_lock, try_lock
from app.storage.embedded.state import State, StatePublisher
from app.storage.embedded.supervisor import Supervisor, exit_on_signals


def main(folder: Path) -> None:
    """Returns once nobody holds the data folder; the process that was started returns at once."""
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if not try_lock(open_lock(folder / "supervisor.lock"), EXCLUSIVE):
        return
    publisher = StatePublisher(folder)
    publisher.publish(State("starting", os.getpid()))
    # The locks pass to the child, and the state is there when the holder that waits for the parent goes on. The child
    # belongs to init, so that no holder has to wait for its end.
    if os.fork() > 0:
        os._exit(0)
    exit_on_signals()
    Supervisor(folder, publisher).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "embedded")
