"""What a base model opens: passports, the frameworks that grade them, and what can be run on it."""

from fedjax_post.openness.framework import COMPONENTS, Evaluation, evaluate
from fedjax_post.openness.passport import Passport, Statement
from fedjax_post.openness.read import load_passport, passport_names
from fedjax_post.openness.runnable import Refusal, refusals, roles
