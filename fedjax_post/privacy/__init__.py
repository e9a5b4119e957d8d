"""Differential privacy of clients, of their uploads and of their rows; accounts; secure sums."""

from fedjax_post.privacy import accounts
from fedjax_post.privacy.accounting import (
    Account,
    check_delta,
    epsilon_of,
    noise_for,
    usual_delta,
)
from fedjax_post.privacy.correlated import Correlation, banded, independent
from fedjax_post.privacy.noise import noise_deviation, private
from fedjax_post.privacy.rows import private_rows
from fedjax_post.privacy.secure import secure_sum
from fedjax_post.privacy.uploads import private_uploads
