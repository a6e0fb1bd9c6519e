"""A Galera cluster of three MariaDB servers on this machine."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import asyncmy

from servers import free_port, missing
from servers_mysql import Private, check_installed

PROVIDERS = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so")
PATIENCE_S = 60.0
NODES = 3

# How soon a silent node is put out of the cluster; commits wait for so long. Galera's defaults
# are 5 and 15 seconds.
EVICTION = (
    "evs.suspect_timeout=PT2S;evs.inactive_timeout=PT4S;"
    "evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.5S"
)


class Galera:
    """Three nodes, of which the first makes the cluster and the others join it."""

    def __init__(self, provider: str) -> None:
        groups = [free_port() for _ in range(NODES)]
        members = ",".join(f"127.0.0.1:{port}" for port in groups)
        self.nodes = [
            Private(
                "--binlog-format=ROW",
                "--innodb-autoinc-lock-mode=2",
                "--wsrep-on=ON",
                f"--wsrep-provider={provider}",
                "--wsrep-cluster-name=threadline",
                f"--wsrep-cluster-address=gcomm://{members}",
                f"--wsrep-node-name=node{number}",
                f"--wsrep-node-address=127.0.0.1:{port}",
                "--wsrep-sst-method=rsync",
                f"--wsrep-sst-receive-address=127.0.0.1:{free_port()}",
                f"--wsrep-provider-options=base_host=127.0.0.1;base_port={port};"
                f"gmcast.listen_addr=tcp://127.0.0.1:{port};"
                f"ist.recv_addr=127.0.0.1:{free_port()};gcache.size=64M;{EVICTION}",
                initialized=number == 0,
            )
            for number, port in enumerate(groups)
        ]

    def start(self) -> None:
        """Start all of them, one after the other."""
        self.nodes[0].start("--wsrep-new-cluster")
        for node in self.nodes:
            if node is not self.nodes[0]:
                node.start()
            self.wait_until_synced(node)

    def wait_until_synced(self, node: Private) -> None:
        """Wait until a node takes part and has all that the others have."""
        end = time.monotonic() + PATIENCE_S
        while True:
            # The node may end a connection once more when it has got its data.
            with contextlib.suppress(asyncmy.errors.Error):
                if self.status(node, "wsrep_local_state_comment") == "Synced":
                    return
            assert time.monotonic() < end, "the node did not join"
            time.sleep(0.05)

    def status(self, node: Private, name: str) -> str:
        """Return what a node says of itself."""
        ((_, value),) = node.server.run(f"SHOW GLOBAL STATUS LIKE '{name}'")
        return str(value)

    def url(self, database: str, first: int = 0) -> str:
        """Return a URL with all hosts, beginning with one of them."""
        nodes = [*self.nodes[first:], *self.nodes[:first]]
        hosts = ",".join(f"127.0.0.1:{node.server.port}" for node in nodes)
        return f"mysql://root@{hosts}/{database}?connect_timeout=2"

    def remove(self) -> None:
        """End them and leave nothing behind."""
        for node in self.nodes:
            node.remove()


@contextlib.contextmanager
def galera() -> Iterator[Galera]:
    """Yield a running cluster, or skip the test by name."""
    check_installed()
    provider = next((path for path in PROVIDERS if Path(path).exists()), None)
    if provider is None or shutil.which("rsync") is None:
        missing("galera", "it is not installed (apt install galera-4 rsync)")
    cluster = Galera(provider)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()
