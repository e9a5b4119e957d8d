"""Federated algorithms, one file for each family; `ALGORITHMS` is the only registry.

>>> algorithm = ALGORITHMS["manual_prompt"](None)
>>> [tier.name for tier in algorithm.access.values()]
['TEXT']
"""

from collections.abc import Callable, Mapping

from fedjax_post.algorithms.agnostic_fed_avg import agnostic_fed_avg
from fedjax_post.algorithms.apfl import apfl
from fedjax_post.algorithms.bdpl import bdpl
from fedjax_post.algorithms.de_com_fl import de_com_fl
from fedjax_post.algorithms.di_loco import di_loco
from fedjax_post.algorithms.ditto import ditto, ditto_fed_avg
from fedjax_post.algorithms.ef21 import ef21
from fedjax_post.algorithms.fed_avg import fed_avg, fed_avg_m
from fedjax_post.algorithms.fed_avg_bbt import fed_avg_bbt
from fedjax_post.algorithms.fed_bbpt import fed_bbpt
from fedjax_post.algorithms.fed_bi_ot import fed_bi_ot
from fedjax_post.algorithms.fed_bpt import fed_bpt
from fedjax_post.algorithms.fed_dpa import fed_dpa
from fedjax_post.algorithms.fed_dpa_f import fed_dpa_f
from fedjax_post.algorithms.fed_dtpt import fed_dtpt
from fedjax_post.algorithms.fed_dyn import fed_dyn
from fedjax_post.algorithms.fed_ex_lora import fed_ex_lora
from fedjax_post.algorithms.fed_k_seed import fed_k_seed
from fedjax_post.algorithms.fed_k_seed_pro import fed_k_seed_pro
from fedjax_post.algorithms.fed_mezo import fed_fwd, fed_mezo
from fedjax_post.algorithms.fed_nova import fed_nova
from fedjax_post.algorithms.fed_opt import fed_adagrad, fed_adam, fed_yogi
from fedjax_post.algorithms.fed_opt_optax import fed_adagrad_optax, fed_adam_optax, fed_yogi_optax
from fedjax_post.algorithms.fed_prompt_search import fed_prompt_search
from fedjax_post.algorithms.fed_prox import fed_prox
from fedjax_post.algorithms.fed_pt import fed_pt
from fedjax_post.algorithms.fed_rep import fed_rep, local_part
from fedjax_post.algorithms.fed_sa_lora import fed_sa_lora
from fedjax_post.algorithms.fed_svd import fed_svd
from fedjax_post.algorithms.ffa_lora import ffa_lora
from fedjax_post.algorithms.flex_lora import flex_lora
from fedjax_post.algorithms.flora import flora
from fedjax_post.algorithms.florist import florist
from fedjax_post.algorithms.fwd_llm import fwd_llm
from fedjax_post.algorithms.het_lora import het_lora
from fedjax_post.algorithms.host_tuning import host_tuning
from fedjax_post.algorithms.in_context import in_context
from fedjax_post.algorithms.lora_fair import lora_fair
from fedjax_post.algorithms.manual_prompt import manual_prompt
from fedjax_post.algorithms.mime import mime
from fedjax_post.algorithms.mime_lite import mime_lite
from fedjax_post.algorithms.offsite_tuning import offsite_tuning
from fedjax_post.algorithms.on_policy import on_policy
from fedjax_post.algorithms.q_fed_avg import q_fed_avg
from fedjax_post.algorithms.ro_lora import ro_lora
from fedjax_post.algorithms.scaffold import scaffold, scaffold_option_1
from fedjax_post.algorithms.synthetic_tuning import synthetic_tuning

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
    "host_tuning": host_tuning,
    "synthetic_tuning": synthetic_tuning,
    "manual_prompt": manual_prompt,
}
