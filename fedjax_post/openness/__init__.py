"""How open a base model is: passports, frameworks that grade them, and methods that can run."""

from fedjax_post.openness.framework import COMPONENTS, Evaluation, evaluate
from fedjax_post.openness.passport import Passport, Statement
from fedjax_post.openness.read import load_passport, passport_names
from fedjax_post.openness.runnable import Refusal, refusals, roles
