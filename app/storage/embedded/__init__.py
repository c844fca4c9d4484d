"""An own Postgres and Valkey for a data folder, so that a laptop runs the same SQL and Redis as production.

Who does what:

    holder        any process inside `embedded_servers()`. It holds a shared lock, nothing else: the kernel drops
                  the lock when the process dies, however it dies (holder.py)
    supervisor    one detached process per data folder, the servers' parent. It restarts a server that dies, and
                  stops both once no holder is left (supervisor.py, __main__.py)
    servers       Postgres and Valkey, on unix sockets in a private folder, never on a TCP port (postgres.py,
                  valkey.py, and server.py for what they share)

Everything lies in `<data folder>/embedded/`: the data, the logs, the locks and the supervisor's published state. As
root, a data folder that the unprivileged user can't enter keeps Postgres' data elsewhere (folders.py).
"""

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.holder import EmbeddedServers, embedded_servers, running_pids

__all__ = ["EmbeddedServers", "EmbeddedServersError", "embedded_servers", "running_pids"]
