"""Attacks on a federation, and what they show; each reads only what its adversary sees."""

from fedjax_post.attacks import membership
from fedjax_post.attacks.audit import (
    CanaryClients,
    canary_scores,
    check_auditor,
    draw_canaries,
    greatest_bound,
    lower_bound,
    with_canaries,
)
from fedjax_post.attacks.canaries import (
    Canaries,
    exposure,
    exposure_of,
    extracted,
    plant_canaries,
)
from fedjax_post.attacks.hostile_rows import flip_labels, plant_backdoor, with_trigger
from fedjax_post.attacks.poisoning import (
    Tampering,
    hostile_clients,
    little_is_enough,
    poisoned,
    scaled,
    sign_flip,
)
