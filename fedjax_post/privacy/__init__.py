"""Differential privacy of whole clients: noise on what the server learns, and its account."""

from fedjax_post.privacy.accounting import check_delta, epsilon_of, noise_for, usual_delta
from fedjax_post.privacy.noise import noise_deviation, private
