"""Attacks on one's own runs: what an adversary learns of the clients' rows, or changes.

Example:
  seen = study.see("runs/mine").seen  # of a run with `record_wire`
  for found in attacks.run(attacks.dager(), seen):
      print(found.sent.clients, found.guess.rows, found.guess.stopped)
"""

from collections.abc import Callable, Mapping

from fedjax_post.attacks import membership
from fedjax_post.attacks.attack import Attack, Found, Guess, run
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
from fedjax_post.attacks.dager import dager
from fedjax_post.attacks.hostile_rows import flip_labels, plant_backdoor, with_trigger
from fedjax_post.attacks.lamp import lamp
from fedjax_post.attacks.poisoning import (
    Tampering,
    hostile_clients,
    little_is_enough,
    poisoned,
    scaled,
    sign_flip,
)
from fedjax_post.attacks.scores import Score, rouge, score, tokens_found
from fedjax_post.attacks.seen import ADVERSARIES, PARTICIPANT, SERVER, Public, Seen, Sent
from fedjax_post.attacks.utr import utr

# name -> factory, for attacks that are written as text
ATTACKS: Mapping[str, Callable[..., Attack]] = {"dager": dager, "lamp": lamp, "utr": utr}
