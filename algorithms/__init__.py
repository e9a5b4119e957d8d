"""Federated algorithms, one file each; `ALGORITHMS` is the only registry."""

from algorithms.di_loco import di_loco
from algorithms.fed_avg import fed_avg, fed_avg_m
from algorithms.fed_dyn import fed_dyn
from algorithms.fed_nova import fed_nova
from algorithms.fed_opt import (
    fed_adagrad,
    fed_adagrad_optax,
    fed_adam,
    fed_adam_optax,
    fed_yogi,
    fed_yogi_optax,
)
from algorithms.fed_prox import fed_prox
from algorithms.mime import mime
from algorithms.mime_lite import mime_lite
from algorithms.scaffold import scaffold, scaffold_option_1

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
    "scaffold_option_1": scaffold_option_1,
    "fed_dyn": fed_dyn,
    "fed_nova": fed_nova,
    "mime_lite": mime_lite,
    "mime": mime,
    "di_loco": di_loco,
}
