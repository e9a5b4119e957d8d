"""Federated algorithms, one file each; `ALGORITHMS` is the only registry."""

from collections.abc import Callable, Mapping

from algorithms.agnostic_fed_avg import agnostic_fed_avg
from algorithms.apfl import apfl
from algorithms.bdpl import bdpl
from algorithms.de_com_fl import de_com_fl
from algorithms.di_loco import di_loco
from algorithms.ditto import ditto, ditto_fed_avg
from algorithms.ef21 import ef21
from algorithms.fed_avg import fed_avg, fed_avg_m
from algorithms.fed_avg_bbt import fed_avg_bbt
from algorithms.fed_bbpt import fed_bbpt
from algorithms.fed_bi_ot import fed_bi_ot
from algorithms.fed_bpt import fed_bpt
from algorithms.fed_dpa import fed_dpa, fed_dpa_f
from algorithms.fed_dtpt import fed_dtpt
from algorithms.fed_dyn import fed_dyn
from algorithms.fed_ex_lora import fed_ex_lora
from algorithms.fed_k_seed import fed_k_seed
from algorithms.fed_k_seed_pro import fed_k_seed_pro
from algorithms.fed_mezo import fed_fwd, fed_mezo
from algorithms.fed_nova import fed_nova
from algorithms.fed_opt import (
    fed_adagrad,
    fed_adagrad_optax,
    fed_adam,
    fed_adam_optax,
    fed_yogi,
    fed_yogi_optax,
)
from algorithms.fed_prompt_search import fed_prompt_search
from algorithms.fed_prox import fed_prox
from algorithms.fed_pt import fed_pt
from algorithms.fed_rep import fed_rep, local_part
from algorithms.fed_sa_lora import fed_sa_lora
from algorithms.fed_svd import fed_svd
from algorithms.ffa_lora import ffa_lora
from algorithms.flex_lora import flex_lora
from algorithms.flora import flora
from algorithms.florist import florist
from algorithms.fwd_llm import fwd_llm
from algorithms.het_lora import het_lora
from algorithms.in_context import in_context
from algorithms.lora_fair import lora_fair
from algorithms.manual_prompt import manual_prompt
from algorithms.mime import mime
from algorithms.mime_lite import mime_lite
from algorithms.offsite_tuning import offsite_tuning
from algorithms.on_policy import on_policy
from algorithms.q_fed_avg import q_fed_avg
from algorithms.ro_lora import ro_lora
from algorithms.scaffold import scaffold, scaffold_option_1

ALGORITHMS: Mapping[str, Callable] = {
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
    "ditto_fed_avg": ditto_fed_avg,
    "fed_rep": fed_rep,
    "apfl": apfl,
    "fed_dpa": fed_dpa,
    "fed_dpa_f": fed_dpa_f,
    "q_fed_avg": q_fed_avg,
    "agnostic_fed_avg": agnostic_fed_avg,
    "fed_mezo": fed_mezo,
    "fed_fwd": fed_fwd,
    "fwd_llm": fwd_llm,
    "fed_k_seed": fed_k_seed,
    "fed_k_seed_pro": fed_k_seed_pro,
    "de_com_fl": de_com_fl,
    "fed_bpt": fed_bpt,
    "fed_avg_bbt": fed_avg_bbt,
    "fed_bbpt": fed_bbpt,
    "ffa_lora": ffa_lora,
    "ro_lora": ro_lora,
    "fed_sa_lora": fed_sa_lora,
    "flora": flora,
    "fed_ex_lora": fed_ex_lora,
    "flex_lora": flex_lora,
    "het_lora": het_lora,
    "fed_svd": fed_svd,
    "lora_fair": lora_fair,
    "florist": florist,
    "offsite_tuning": offsite_tuning,
    "fed_bi_ot": fed_bi_ot,
    "fed_pt": fed_pt,
    "bdpl": bdpl,
    "fed_dtpt": fed_dtpt,
    "fed_prompt_search": fed_prompt_search,
    "in_context": in_context,
    "manual_prompt": manual_prompt,
}
