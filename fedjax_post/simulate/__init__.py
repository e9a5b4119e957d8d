"""Simulated federations: the only place that maps over clients and carries out rounds."""

from fedjax_post.simulate.asynchronous import Buffer
from fedjax_post.simulate.cohort import cyclic, full, poisson, uniform
from fedjax_post.simulate.host import host
from fedjax_post.simulate.identity import identify
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.programs import device
from fedjax_post.simulate.progress import progress
from fedjax_post.simulate.run import client_state_like, restore, run, wire_bytes_of
from fedjax_post.simulate.sweep import sweep
from fedjax_post.simulate.visit import visit
