"""Run the command as if on another machine, where the ids of processes here mean nothing."""

import socket

from mmq_sweeps.__main__ import main
from mmq_sweeps.store.lock_owner import this_machine

if __name__ == "__main__":
    socket.gethostname = lambda: "elsewhere"
    this_machine.cache_clear()
    main()
