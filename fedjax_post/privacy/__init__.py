"""Differential privacy at the level of clients: noise on the aggregate, and its accounting."""

from fedjax_post.privacy.accounting import (
    check_delta,
    epsilon_of,
    epsilon_of_shares,
    noise_for,
    noise_for_shares,
    usual_delta,
)
from fedjax_post.privacy.noise import noise_deviation, private
from fedjax_post.privacy.secure import secure_sum
