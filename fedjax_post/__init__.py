"""Federated post-training of open-weight language models, as pure functions in JAX."""

from pathlib import Path as _Path

# In a checkout, the folders of `fedjax_post.algorithms` and `fedjax_post.experiments` lie beside
# this one; in an installed package, within it.
if not (_Path(__file__).parent / "algorithms").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))

from fedjax_post.core.access import Access, AccessError
from fedjax_post.core.engine import State, broadcast, deployed, finish, init, serve
from fedjax_post.data.batches import ArrayClients, TokenClients
from fedjax_post.simulate.asynchronous import Buffer
from fedjax_post.simulate.cohort import cyclic, full, poisson, uniform
from fedjax_post.simulate.feed import chunks, pooled
from fedjax_post.simulate.heap import keep_freed_memory
from fedjax_post.simulate.host import host
from fedjax_post.simulate.identity import identify
from fedjax_post.simulate.mesh import make_mesh, on_mesh, put_on_mesh
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.programs import device
from fedjax_post.simulate.progress import progress
from fedjax_post.simulate.run import restore, run
from fedjax_post.simulate.visit import visit

__version__ = "0.1.0"
