"""Differential privacy at the level of clients: noise on the aggregate, and its accounting."""

from fedjax_post.privacy.accounting import check_delta, epsilon_of, noise_for, usual_delta
from fedjax_post.privacy.noise import noise_deviation, private
