"""Start a lab: on a cluster of our own, or on one that there is."""

from __future__ import annotations

import sys

from distributed import Client

from workbench import machine
from workbench.arguments import check_threads, check_workers
from workbench.cluster.control import Control
from workbench.cluster.devices import visible_gpus
from workbench.cluster.lab import Lab, lab_of
from workbench.cluster.own_cluster import OwnCluster
from workbench.errors import PlanError, RunError


def start(
    workers: int | None = None, threads: int | None = None, client: Client | None = None
) -> Lab:
    """Start a Dask cluster on this machine, or adopt a running one.

    The own cluster speaks TLS with credentials made for it alone, listens on 127.0.0.1 only, and
    ends with this process, however that ends.

    Parameters
    ----------
    workers:
        Number of workers, each of which can host one rank. By default one per GPU if there are two
        or more, else one per core, at most 4.
    threads:
        Torch threads per rank; by default the machine's cores, shared equally.
    client:
        A client of a running cluster. It stays open when the lab is closed. Adopting a client that
        an open lab has already adopted gives that lab.

    Raises
    ------
    PlanError
        The numbers, the client or this operating system cannot be used; nothing was started.
    RunError
        The cluster did not start.
    """
    if sys.platform != "linux":
        raise PlanError(
            f"Ranks run on Linux only, and this is {sys.platform}; use WSL2 on Windows or a Linux "
            f"container elsewhere."
        )
    if workers is not None:
        check_workers(workers)
    if threads is not None:
        check_threads(threads)
    if client is None:
        return _start_own(workers, threads)
    if workers is not None:
        raise PlanError(
            f"workers={workers} and client= cannot go together: an adopted cluster has the workers "
            f"that it has; leave out workers."
        )
    return _adopt(client, threads)


def _start_own(workers: int | None, threads: int | None) -> Lab:
    gpus = visible_gpus()
    cores = machine.cores()
    workers = workers or (len(gpus) if len(gpus) >= 2 else min(cores, 4))
    share = max(1, cores // workers)
    cluster = OwnCluster.open(workers, share, gpus)
    try:
        return Lab(cluster.client, threads or share, cluster)
    except BaseException:
        cluster.close()
        raise


def _adopt(client: Client, threads: int | None) -> Lab:
    if not isinstance(client, Client) or client.asynchronous:
        raise PlanError(
            f"client= takes a synchronous dask.distributed.Client; got {type(client).__name__}."
        )
    if client.status != "running":
        raise PlanError(f"The client is {client.status}, not running; connect another.")
    lab = lab_of(client)
    if lab is not None:
        return lab
    if not Control(client).workers():
        raise PlanError("The client's cluster has no workers; scale it up first.")
    try:
        return Lab(client, threads, None)
    except RunError:
        raise
    except Exception as error:
        raise PlanError(
            f"The client's cluster cannot host ranks: {error!r}; its scheduler and workers need "
            f"the same versions of Python and of this package as this process."
        ) from error
