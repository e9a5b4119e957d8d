"""Scores of models: held-out loss, exact match, ranks, and baselines that need no model."""

from fedjax_post.evaluate.baselines import exact_match, majority_answers, nearest_answers
from fedjax_post.evaluate.choices import Choices, find_choices
from fedjax_post.evaluate.generation import greedy_answers, matches, reference_answers
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.evaluate.loss import RowLosses, mean_loss, row_losses
from fedjax_post.evaluate.scores import left_out, mean_scores, score
