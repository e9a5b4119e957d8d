"""Flags of a run in several processes, and how these connect: by `jax.distributed`.

Each process is started with the same flags, by a cluster's launcher or by hand:

    srun python -m experiments.train --mesh=clients:8 --distributed
    python -m experiments.train --mesh=clients:2 --coordinator_address=host:4711 \\
        --num_processes=2 --process_id=0
"""

import os
import signal
import socket
import sys
import threading
from typing import Any

import jax
from absl import flags

from fedjax_post.experiments.flags.define import as_flags
from fedjax_post.experiments.flags.parse import CommandLine
from fedjax_post.simulate import processes

PATIENCE = 300  # seconds that processes wait for each other to start
_BY_HAND = ("coordinator_address", "num_processes", "process_id")
FLAGS = ("distributed", *_BY_HAND)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    give: dict[str, Any] = {"flag_values": values}
    cluster = "one run of all processes that a cluster started: SLURM, Open MPI, Kubernetes, TPU"
    flags.DEFINE_bool("distributed", False, cluster, **give)
    by_hand = "one run of processes started by hand: host:port of process 0"
    flags.DEFINE_string("coordinator_address", None, by_hand, **give)
    flags.DEFINE_integer("num_processes", None, "processes started by hand", lower_bound=1, **give)
    which = "number of this process among those started by hand, from 0"
    flags.DEFINE_integer("process_id", None, which, lower_bound=0, **give)


def given_flags(values: flags.FlagValues) -> list[str]:
    """Returns the flags that ask for several processes, as they are written in a command."""
    asked = [values[name] for name in FLAGS]
    return [flag.serialize() for flag in asked if flag.value != flag.default]


def join(line: CommandLine) -> None:
    """Connects to the other processes if the flags ask for it, before anything else uses jax.

    From then on SIGTERM notifies all processes, see `peers.should_stop`, and so does the first
    Ctrl-C.

    Raises:
      ValueError: for flags that a run of several processes cannot have, that are missing and
        that no cluster supplies, or that differ between the processes.
      TimeoutError: if not all processes connected.
    """
    if not given_flags(line.values) or jax.distributed.is_initialized():
        return
    _check(line)
    failed: list[Exception] = []
    # In a thread, because jax ignores Ctrl-C here, and some of its failures end the process.
    connecting = threading.Thread(target=_connect, args=(line, failed), daemon=True)
    connecting.start()
    connecting.join(min(5, PATIENCE))
    if connecting.is_alive():
        print(f"waiting for the other processes, at most {PATIENCE} seconds", file=sys.stderr)
        connecting.join(PATIENCE)
    if connecting.is_alive():
        raise TimeoutError(_missing(line))
    if failed:
        raise ValueError(f"{given_flags(line.values)[0]}: {failed[0]}") from failed[0]
    signal.signal(signal.SIGINT, _notify)
    _check_same(line)


def _connect(line: CommandLine, failed: list[Exception]) -> None:
    named = {name: line.values[name].value for name in _BY_HAND}
    try:
        jax.distributed.initialize(**named, initialization_timeout=2 * PATIENCE)
        jax.devices()  # processes wait for each other's
    except ValueError:  # a setting was neither given nor found
        no_cluster = ValueError(
            "no cluster was found that names the processes; give --coordinator_address=host:port, "
            "--num_processes and --process_id"
        )
        failed.append(no_cluster)
    except Exception as error:
        failed.append(error)


def _check(line: CommandLine) -> None:
    """Checks what can be checked without the other processes."""
    first = given_flags(line.values)[0]
    number, count = line.values.process_id, line.values.num_processes
    missing = [f"--{name}" for name in _BY_HAND if line.values[name].value is None]
    if missing and not line.values.distributed:
        raise ValueError(
            f"{first} needs {' and '.join(missing)} too; or --distributed, on a cluster"
        )
    if None not in (number, count) and number >= count:
        raise ValueError(
            f"--process_id={number} must be less than --num_processes={count}; processes are "
            "numbered from 0"
        )
    if line.spec.execution.executor == "host":
        raise ValueError(f"{first}: --executor=host computes in one process; leave one of them out")
    if not line.spec.execution.mesh:
        raise ValueError(
            f"{first} needs --mesh for the devices of all processes together, such as clients:8"
        )
    if line.values.coordinator_address is not None:
        _check_address(line.values.coordinator_address, is_here=number == 0)


def _check_address(address: str, *, is_here: bool) -> None:
    """Checks an address, and that its port is free if process 0 is here."""
    flag = f"--coordinator_address={address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"{flag} is not host:port of process 0; give one, such as localhost:4711")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError:
        raise ValueError(f"{flag}: there is no host {host}; check the spelling") from None
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        if is_here:
            socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ValueError(
            f"{flag}: process 0 cannot listen there ({why}); give all processes another port"
        ) from None


def _missing(line: CommandLine) -> str:
    """Why not all processes connected, as far as is known."""
    address, count = line.values.coordinator_address, line.values.num_processes
    waited = f"within {PATIENCE} seconds"
    if address is None or count is None:
        return f"--distributed: not all processes connected {waited}; check the logs of the others"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return (
            f"--coordinator_address={address}: there was no answer {waited}; start process 0, or "
            "give its host and a port that is open between the machines"
        )
    return (
        f"--num_processes={count}: not all of them connected to {address} {waited}; start one "
        f"for each --process_id from 0 to {count - 1}, with the same flags"
    )


def _check_same(line: CommandLine) -> None:
    """Checks, in all processes, that they were started with the same flags."""
    where = f"--output_dir={line.values.output_dir}"
    mine = [*as_flags(line.spec), where, f"--resume={line.values.resume}"]
    flags_of = [text.split("\n") for text in processes.exchange("\n".join(mine))]
    for number, lines in enumerate(flags_of):
        if lines != flags_of[0]:
            theirs = [line for line in lines if line not in flags_of[0]]
            firsts = [line for line in flags_of[0] if line not in lines]
            raise ValueError(
                f"process {number} has {', '.join(theirs) or 'nothing'} where process 0 has "
                f"{', '.join(firsts) or 'nothing'}; start all with the same flags"
            )


def _notify(signum: int, frame: object) -> None:
    """Notifies all processes of Ctrl-C by jax's own service, which reacts to SIGTERM."""
    del signum, frame
    print("\nstopping after this round; Ctrl-C again stops at once", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGTERM)
