"""Federated algorithms, one file each; `ALGORITHMS` is the only registry."""

from algorithms.fed_avg import fed_avg, fed_avg_m
from algorithms.fed_opt import (
    fed_adagrad,
    fed_adagrad_optax,
    fed_adam,
    fed_adam_optax,
    fed_yogi,
    fed_yogi_optax,
)
from algorithms.fed_prox import fed_prox
from algorithms.scaffold import scaffold

ALGORITHMS = {
    "fed_avg": fed_avg,
    "fed_avg_m": fed_avg_m,
    "fed_adam": fed_adam,
    "fed_yogi": fed_yogi,
    "fed_adagrad": fed_adagrad,
    "fed_adam_optax": fed_adam_optax,
    "fed_yogi_optax": fed_yogi_optax,
    "fed_adagrad_optax": fed_adagrad_optax,
    "fed_prox": fed_prox,
    "scaffold": scaffold,
}
