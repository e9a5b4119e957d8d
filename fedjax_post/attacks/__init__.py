"""Attacks on a federation, and what they show; each reads only what its adversary sees."""

from fedjax_post.attacks.hostile_rows import flip_labels, plant_backdoor, with_trigger
from fedjax_post.attacks.poisoning import (
    Attack,
    hostile_clients,
    little_is_enough,
    poisoned,
    scaled,
    sign_flip,
)
