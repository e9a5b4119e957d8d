"""Data on the host: sources, templates, tokenised tables, partitions and clients' batches.

Start with `load_clients`, or with `load_pairs` for preference data. The `datasets` library is
imported only when rows are read.
"""

from fedjax_post.data.alike import divide_alike
from fedjax_post.data.batches import ArrayClients, TokenClients, pool
from fedjax_post.data.clients import Clients
from fedjax_post.data.clusters import cluster, tfidf
from fedjax_post.data.columns import Columns, find_columns
from fedjax_post.data.holdings import Holdings, holdings
from fedjax_post.data.label_skew import dirichlet, shards, single_label
from fedjax_post.data.lengths import by_length
from fedjax_post.data.load import Loaded, Text, load_clients
from fedjax_post.data.pairs import PairClients, load_pairs
from fedjax_post.data.partition import Partition, describe, iid, natural
from fedjax_post.data.population import Population
from fedjax_post.data.ranks import RankedClients
from fedjax_post.data.sizes import quantity
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import Splits, hold_out
from fedjax_post.data.table import TokenTable, gather, make_table

__all__ = [
    "ArrayClients",
    "Clients",
    "Columns",
    "Holdings",
    "Loaded",
    "PairClients",
    "Partition",
    "Population",
    "RankedClients",
    "Splits",
    "Text",
    "TokenClients",
    "TokenTable",
    "by_length",
    "cluster",
    "describe",
    "dirichlet",
    "divide_alike",
    "find_columns",
    "gather",
    "hold_out",
    "holdings",
    "iid",
    "load_clients",
    "load_pairs",
    "load_splits",
    "make_table",
    "natural",
    "pool",
    "quantity",
    "shards",
    "single_label",
    "tfidf",
]
