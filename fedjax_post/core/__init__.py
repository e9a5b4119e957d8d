"""The abstraction of a federated algorithm, independent of models and data."""

from fedjax_post.core.access import LEVELS, Access, AccessError, check_access
from fedjax_post.core.aggregates import fixed_mean, stack, weighted_mean
from fedjax_post.core.algorithm import (
    SUMMED,
    Aggregate,
    Algorithm,
    Around,
    Client,
    ClientData,
    Context,
    Downlink,
    Server,
    Uplink,
    Upload,
    plain,
    whole,
)
from fedjax_post.core.compose import with_aggregate, with_uplink
from fedjax_post.core.engine import (
    ClientState,
    State,
    Total,
    broadcast,
    deployed,
    finish,
    init,
    init_client,
    serve,
    visit_client,
    wire_bytes,
)
from fedjax_post.core.local import (
    add_control,
    add_proximal,
    by_examples,
    by_tokens,
    continued_steps,
    local_steps,
    mean_over_steps,
    over_steps,
    scale_by_round,
    uniformly,
)
from fedjax_post.core.quantize import quantize, random_k, sign
from fedjax_post.core.robust import (
    coordinate_median,
    geometric_median,
    krum,
    multi_krum,
    norm_bounded,
    trimmed_mean,
)
from fedjax_post.core.servers import keep_latest, server_optimizer
from fedjax_post.core.uplinks import cast, chain, clip, error_feedback, top_k
from fedjax_post.core.wire import num_bytes, pack, unpack
