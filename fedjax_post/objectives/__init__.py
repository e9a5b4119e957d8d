"""Losses as pure functions of parameters, model and batch."""

from fedjax_post.objectives.choice import choice_loss
from fedjax_post.objectives.dpo import dpo_loss
from fedjax_post.objectives.grpo import grpo_loss, rollouts
from fedjax_post.objectives.sft import sft_loss
