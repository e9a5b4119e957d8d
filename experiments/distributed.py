"""Flags of a run of several processes, and how these meet: by `jax.distributed`.

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

import jax
from absl import flags
from fedjax_post.experiments.flags.define import as_flags
from fedjax_post.experiments.flags.parse import CommandLine

from fedjax_post.simulate import processes

PATIENCE = 300  # seconds that processes wait for each other to be started
_BY_HAND = ("coordinator_address", "num_processes", "process_id")
FLAGS = ("distributed", *_BY_HAND)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    give = {"flag_values": values}
    cluster = "one run of all processes that a cluster started: SLURM, Open MPI, Kubernetes, TPU"
    flags.DEFINE_bool("distributed", False, cluster, **give)
    by_hand = "one run of processes started by hand: host:port of process 0"
    flags.DEFINE_string("coordinator_address", None, by_hand, **give)
    flags.DEFINE_integer("num_processes", None, "started by hand", lower_bound=1, **give)
    which = "which of those started by hand this is, from 0"
    flags.DEFINE_integer("process_id", None, which, lower_bound=0, **give)


def given(values: flags.FlagValues) -> list[str]:
    """Returns the flags that ask for several processes, as they stand in a command."""
    asked = [values[name] for name in FLAGS]
    return [flag.serialize() for flag in asked if flag.value != flag.default]


def join(line: CommandLine) -> None:
    """Meets the other processes where the flags say so, before anything else uses jax.

    From then on SIGTERM is a notice to all processes, see `peers.should_stop`, and the first
    Ctrl-C is one too.

    Raises:
      ValueError: for flags that no run of several processes can have, that a cluster does not
        fill in, or that differ between the processes.
      TimeoutError: if not all came.
    """
    if not given(line.values) or jax.distributed.is_initialized():
        return
    _check(line)
    failed: list[Exception] = []
    # On a thread: what jax cannot do here ends the process, and it does not hear Ctrl-C.
    meeting = threading.Thread(target=_meet, args=(line, failed), daemon=True)
    meeting.start()
    meeting.join(min(5, PATIENCE))
    if meeting.is_alive():
        print(f"waiting for the other processes, {PATIENCE} seconds at most", file=sys.stderr)
        meeting.join(PATIENCE)
    if meeting.is_alive():
        raise TimeoutError(_missing(line))
    if failed:
        raise ValueError(f"{given(line.values)[0]}: {failed[0]}") from failed[0]
    signal.signal(signal.SIGINT, _notify)
    _check_same(line)


def _meet(line: CommandLine, failed: list[Exception]) -> None:
    named = {name: line.values[name].value for name in _BY_HAND}
    try:
        jax.distributed.initialize(**named, initialization_timeout=2 * PATIENCE)
        jax.devices()  # processes wait for each other's
    except ValueError:  # something was not given and not found
        no_cluster = ValueError(
            "no cluster tells who takes part; give --coordinator_address=host:port, "
            "--num_processes and --process_id"
        )
        failed.append(no_cluster)
    except Exception as error:
        failed.append(error)


def _check(line: CommandLine) -> None:
    """Refuses what needs no other process to be wrong."""
    told, number, count = given(line.values)[0], line.values.process_id, line.values.num_processes
    missing = [f"--{name}" for name in _BY_HAND if line.values[name].value is None]
    if missing and not line.values.distributed:
        raise ValueError(
            f"{told} needs {' and '.join(missing)} too; or --distributed, where a cluster tells"
        )
    if None not in (number, count) and number >= count:
        raise ValueError(
            f"--process_id={number} must be less than --num_processes={count}; processes are "
            "numbered from 0"
        )
    if line.spec.execution.executor == "host":
        raise ValueError(f"{told}: --executor=host computes in one process; leave one of them out")
    if not line.spec.execution.mesh:
        raise ValueError(
            f"{told} needs --mesh for the devices of all processes together, such as clients:8"
        )
    if line.values.coordinator_address is not None:
        _check_address(line.values.coordinator_address, is_here=number == 0)


def _check_address(address: str, *, is_here: bool) -> None:
    """Refuses an address that cannot be, or whose port is taken on this machine."""
    told = f"--coordinator_address={address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"{told} is no host:port of process 0; such as localhost:4711")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError:
        raise ValueError(f"{told}: there is no host {host}; see how it is spelt") from None
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        if is_here:
            socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ValueError(
            f"{told}: process 0 cannot listen there ({why}); give all processes another port"
        ) from None


def _missing(line: CommandLine) -> str:
    """What is known of why not all processes came."""
    address, count = line.values.coordinator_address, line.values.num_processes
    waited = f"within {PATIENCE} seconds"
    if address is None or count is None:
        return f"--distributed: not all processes came {waited}; see how the others fared"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return (
            f"--coordinator_address={address}: nobody answered there {waited}; start process 0, "
            "or give its host and a port that is open between them"
        )
    return (
        f"--num_processes={count}: not all of them came to {address} {waited}; start one for each "
        f"--process_id from 0 to {count - 1}, with the same flags"
    )


def _check_same(line: CommandLine) -> None:
    """Refuses, in all processes, that they were told different things."""
    where = f"--output_dir={line.values.output_dir}"
    mine = [*as_flags(line.spec), where, f"--resume={line.values.resume}"]
    said = [text.split("\n") for text in processes.exchange("\n".join(mine))]
    for number, lines in enumerate(said):
        if lines != said[0]:
            theirs = [line for line in lines if line not in said[0]]
            firsts = [line for line in said[0] if line not in lines]
            raise ValueError(
                f"process {number} has {', '.join(theirs) or 'nothing'} where process 0 has "
                f"{', '.join(firsts) or 'nothing'}; start all with the same flags"
            )


def _notify(signum: int, frame: object) -> None:
    """Tells all processes of Ctrl-C by jax's own service, which listens to SIGTERM."""
    del signum, frame
    print("\nstopping behind a round; Ctrl-C again leaves at once", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGTERM)
